"""@tensorflow_release as a module extension, for MODULE.bazel."""

load(":release.bzl", "tensorflow_repositories")

def _tensorflow_impl(_module_ctx):
    tensorflow_repositories()

tensorflow = module_extension(implementation = _tensorflow_impl)
