"""clang for another platform: a toolchain, whose compiler a repository names."""

load("@bazel_tools//tools/build_defs/cc:action_names.bzl", "ACTION_NAMES")
load(
    "@bazel_tools//tools/cpp:cc_toolchain_config_lib.bzl",
    "feature",
    "flag_group",
    "flag_set",
    "tool_path",
)
load("@rules_cc//cc:defs.bzl", "cc_toolchain")
load(":flags.bzl", "COMPILE", "LINK", "flags_for")

def _clang_config_impl(ctx):
    return cc_common.create_cc_toolchain_config_info(
        ctx = ctx,
        toolchain_identifier = ctx.attr.target,
        host_system_name = "local",
        target_system_name = ctx.attr.target,
        target_cpu = "aarch64",
        # Bazel links for macOS if it has this name.
        target_libc = "macosx" if ctx.attr.os == "macos" else ctx.attr.os,
        compiler = "clang",
        abi_version = "unknown",
        abi_libc_version = "unknown",
        tool_paths = [
            tool_path(name = name, path = ctx.attr.tools.get(name, "/bin/false"))
            for name in ["ar", "cpp", "gcc", "gcov", "ld", "nm", "objdump", "strip"]
        ],
        cxx_builtin_include_directories = ctx.attr.include_directories,
        features = [
            feature(name = "dbg"),
            feature(name = "fastbuild"),
            feature(name = "opt"),
            feature(name = "supports_pic", enabled = True),
            # Bazel's own for macOS are those of Apple's libtool.
            feature(
                name = "archiver_flags",
                flag_sets = [flag_set(
                    actions = [ACTION_NAMES.cpp_link_static_library],
                    flag_groups = [
                        flag_group(flags = ["rcsD"]),
                        flag_group(
                            expand_if_available = "output_execpath",
                            flags = ["%{output_execpath}"],
                        ),
                        flag_group(
                            expand_if_available = "libraries_to_link",
                            flags = ["%{libraries_to_link.name}"],
                            iterate_over = "libraries_to_link",
                        ),
                    ],
                )],
            ),
            feature(
                name = "default_flags",
                enabled = True,
                flag_sets = [
                    flags_for(COMPILE, ctx.attr.flags + [
                        "-fstack-protector",
                        "-fno-omit-frame-pointer",
                        "-Wno-builtin-macro-redefined",
                        "-D__DATE__=\"redacted\"",
                        "-D__TIMESTAMP__=\"redacted\"",
                        "-D__TIME__=\"redacted\"",
                    ]),
                    flags_for(COMPILE, ["-g"], "dbg"),
                    flags_for(COMPILE, ["-g0", "-O2", "-DNDEBUG"], "opt"),
                    flags_for(LINK, ctx.attr.flags + ctx.attr.link_flags),
                ],
            ),
        ],
    )

_clang_config = rule(
    implementation = _clang_config_impl,
    attrs = {
        "flags": attr.string_list(doc = "For compiling and linking."),
        "include_directories": attr.string_list(
            doc = "Absolute paths of the compiler's own headers.",
        ),
        "link_flags": attr.string_list(),
        "os": attr.string(mandatory = True, doc = "As in @platforms//os."),
        "target": attr.string(mandatory = True, doc = "clang's name of the platform."),
        "tools": attr.string_dict(
            doc = "Paths of gcc, which is clang++, and ar; from the root, or from here.",
            mandatory = True,
        ),
    },
    provides = [CcToolchainConfigInfo],
)

def clang_toolchain(name, os, files = [], **config):
    """A toolchain for 64-bit ARM, to be given to --extra_toolchains.

    Args:
      name: of the toolchain.
      os: as in @platforms//os.
      files: what of the compiler is in the repository.
      **config: attributes of the configuration.
    """
    _clang_config(name = name + "_config", os = os, **config)
    native.filegroup(name = name + "_files", srcs = files)
    cc_toolchain(
        name = name + "_cc",
        toolchain_config = ":" + name + "_config",
        **{
            kind + "_files": ":" + name + "_files"
            for kind in ["all", "ar", "as", "compiler", "dwp", "linker", "objcopy", "strip"]
        }
    )
    native.toolchain(
        name = name,
        target_compatible_with = [
            "@platforms//cpu:aarch64",
            "@platforms//os:" + os,
        ],
        toolchain = ":" + name + "_cc",
        toolchain_type = "@bazel_tools//tools/cpp:toolchain_type",
    )
