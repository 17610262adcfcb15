"""Compilers for other platforms, found or fetched when a configuration needs them.

@zig has Zig from PyPI, for macOS; @android_ndk what ANDROID_NDK_HOME names. Each has a
toolchain of //third_party/toolchains:clang.bzl.
"""

load("//third_party/python:environments.bzl", "ENVIRON", "make_environment")

# As in docs/android.md; the first macOS for Apple silicon.
_ANDROID = "24"
_MACOS = "11.0"

_TOOLCHAIN = """\
load("@ai_edge_rms_norm//third_party/toolchains:clang.bzl", "clang_toolchain")

package(default_visibility = ["//visibility:public"])

clang_toolchain(
    name = "{name}",
    files = {files},
    flags = {flags},
    include_directories = {include_directories},
    link_flags = {link_flags},
    os = "{os}",
    target = "{target}",
    tools = {tools},
)
"""

# Actions have no home folder, in which Zig would keep the C++ library that it compiles.
_ZIG = """\
#!/bin/sh
export ZIG_GLOBAL_CACHE_DIR='{zig}-cache'
export ZIG_LOCAL_CACHE_DIR="$ZIG_GLOBAL_CACHE_DIR"
exec '{zig}' {command} "$@"
"""

def _zig_impl(repository_ctx):
    python = make_environment(
        repository_ctx,
        repository_ctx.attr._lock,
        repository_ctx.attr._script,
    )
    find = "import ziglang; print(ziglang.__path__[0])"
    result = repository_ctx.execute([python, "-c", find])
    if result.return_code != 0:
        fail("Zig is for Linux only here:\n" + result.stderr)
    folder = result.stdout.strip()
    target = "aarch64-macos." + _MACOS
    for name, command in {"ar": "ar", "c++": "c++ -target " + target}.items():
        text = _ZIG.format(zig = folder + "/zig", command = command)
        repository_ctx.file(name, text, executable = True)
    repository_ctx.file("BUILD", _TOOLCHAIN.format(
        name = "macos_arm64",
        files = ["ar", "c++"],
        flags = [],
        include_directories = [folder + "/lib"],
        link_flags = ["-Wl,-dead_strip"],
        os = "macos",
        target = target,
        tools = {"ar": "ar", "gcc": "c++"},
    ))

zig = repository_rule(
    implementation = _zig_impl,
    attrs = {
        "_lock": attr.label(default = "//third_party/python:requirements-macos.lock"),
        "_script": attr.label(default = "//third_party/python:make_environment.py"),
    },
    doc = "Zig as a compiler for macOS on Apple silicon.",
    environ = ENVIRON,
)

def _android_ndk_impl(repository_ctx):
    ndk = repository_ctx.os.environ.get("ANDROID_NDK_HOME")
    if not ndk:
        fail("ANDROID_NDK_HOME is not set; it is the folder of Android's NDK")
    is_mac = repository_ctx.os.name.startswith("mac")
    host = "darwin-x86_64" if is_mac else "linux-x86_64"
    llvm = "{}/toolchains/llvm/prebuilt/{}".format(ndk, host)
    compiler = llvm + "/bin/clang++"
    if not repository_ctx.path(compiler).exists:
        fail("ANDROID_NDK_HOME={} has no {}".format(ndk, compiler))
    target = "aarch64-linux-android" + _ANDROID
    repository_ctx.file("BUILD", _TOOLCHAIN.format(
        name = "arm64",
        files = [],
        flags = ["--target=" + target, "--sysroot={}/sysroot".format(llvm)],
        # Of clang itself, under a folder with its version, and of the system.
        include_directories = [llvm],
        # The C++ library inside; Android 15 has devices with pages of 16 KiB.
        link_flags = ["-static-libstdc++", "-Wl,--no-undefined", "-Wl,-z,max-page-size=16384"],
        os = "android",
        target = target,
        tools = {"ar": llvm + "/bin/llvm-ar", "gcc": compiler},
    ))

android_ndk = repository_rule(
    implementation = _android_ndk_impl,
    doc = "The NDK as a compiler for Android on 64-bit ARM.",
    environ = ["ANDROID_NDK_HOME"],
    local = True,
)

def toolchain_repositories():
    """Declares @zig and @android_ndk; WORKSPACE and extension.bzl call it."""
    zig(name = "zig")
    android_ndk(name = "android_ndk")
