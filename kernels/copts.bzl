"""Compiler and linker flags of all C++ targets."""

# Hardening of what is shipped. These come after the toolchain's own flags and --copt,
# and replace, for example, the -D_FORTIFY_SOURCE=1 of Bazel's configuration of GCC.
_HARDENING = ["-fstack-protector-strong"] + select({
    "@platforms//cpu:x86_64": ["-fcf-protection=full"],
    "@platforms//cpu:aarch64": ["-mbranch-protection=standard"],
    "//conditions:default": [],
}) + select({
    # Sanitizers intercept the functions that it replaces.
    "//kernels:sanitized": [],
    # It needs the optimizer, which knows the sizes of objects.
    "//kernels:optimized": ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"],
    "//conditions:default": [],
})

COPTS = [
    "-std=c++17",
    "-Wall",
    "-Wextra",
    "-Werror",
] + _HARDENING + select({
    # What Zig links exports everything else; it ignores the list of exported symbols.
    "@platforms//os:macos": ["-fvisibility=hidden", "-fvisibility-inlines-hidden"],
    "//conditions:default": [],
})

_ELF_LINKOPTS = ["-Wl,-z,relro,-z,now,-z,noexecstack"]

# Of every shared library.
LINKOPTS = select({
    "@platforms//os:android": _ELF_LINKOPTS,
    "@platforms//os:linux": _ELF_LINKOPTS,
    "//conditions:default": [],
})
