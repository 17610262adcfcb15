"""GCC as Debian and Ubuntu package it for another architecture."""

load(
    "@bazel_tools//tools/cpp:cc_toolchain_config_lib.bzl",
    "feature",
    "tool_path",
)
load(":flags.bzl", "COMPILE", "LINK", "flags_for")

def _cross_gcc_config_impl(ctx):
    triplet = ctx.attr.triplet
    tools = {
        "ar": "ar",
        "cpp": "cpp",
        "gcc": "gcc",
        "gcov": "gcov",
        "ld": "ld",
        "nm": "nm",
        "objcopy": "objcopy",
        "objdump": "objdump",
        "strip": "strip",
    }
    return cc_common.create_cc_toolchain_config_info(
        ctx = ctx,
        toolchain_identifier = triplet,
        host_system_name = "local",
        target_system_name = triplet,
        target_cpu = ctx.attr.cpu,
        target_libc = "glibc",
        compiler = "gcc",
        abi_version = "gcc",
        abi_libc_version = "glibc",
        tool_paths = [
            tool_path(name = name, path = "/usr/bin/{}-{}".format(triplet, tool))
            for name, tool in tools.items()
        ],
        cxx_builtin_include_directories = [
            "/usr/{}/include".format(triplet),
            "/usr/lib/gcc-cross/" + triplet,
            # Multiarch: headers without code for an architecture, from any package.
            "/usr/include",
        ],
        # Bazel adds what every GCC understands; these are the flags of its own
        # configuration of the host's compiler.
        features = [
            feature(name = "dbg"),
            feature(name = "fastbuild"),
            feature(name = "opt"),
            feature(name = "supports_pic", enabled = True),
            feature(
                name = "default_flags",
                enabled = True,
                flag_sets = [
                    flags_for(COMPILE, [
                        "-U_FORTIFY_SOURCE",
                        "-fstack-protector",
                        "-fno-omit-frame-pointer",
                        "-fno-canonical-system-headers",
                        "-Wno-builtin-macro-redefined",
                        "-D__DATE__=\"redacted\"",
                        "-D__TIMESTAMP__=\"redacted\"",
                        "-D__TIME__=\"redacted\"",
                    ]),
                    flags_for(COMPILE, ["-g"], "dbg"),
                    flags_for(COMPILE, [
                        "-g0",
                        "-O2",
                        "-D_FORTIFY_SOURCE=1",
                        "-DNDEBUG",
                        "-ffunction-sections",
                        "-fdata-sections",
                    ], "opt"),
                    flags_for(LINK, [
                        "-lstdc++",
                        "-lm",
                        "-pass-exit-codes",
                        "-Wl,-z,relro,-z,now",
                    ]),
                    flags_for(LINK, ["-Wl,--gc-sections"], "opt"),
                ],
            ),
        ],
    )

cross_gcc_config = rule(
    implementation = _cross_gcc_config_impl,
    attrs = {
        "cpu": attr.string(mandatory = True, doc = "Bazel's name of the architecture."),
        "triplet": attr.string(mandatory = True, doc = "GNU's name of the platform."),
    },
    provides = [CcToolchainConfigInfo],
    doc = "The configuration of <triplet>-gcc in /usr/bin.",
)
