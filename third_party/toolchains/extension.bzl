"""@zig and @android_ndk as a module extension, for MODULE.bazel."""

load(":repositories.bzl", "toolchain_repositories")

def _toolchains_impl(_module_ctx):
    toolchain_repositories()

toolchains = module_extension(implementation = _toolchains_impl)
