"""Flags that the configurations of C++ toolchains share."""

load("@bazel_tools//tools/build_defs/cc:action_names.bzl", "ACTION_NAMES")
load(
    "@bazel_tools//tools/cpp:cc_toolchain_config_lib.bzl",
    "flag_group",
    "flag_set",
    "with_feature_set",
)

COMPILE = [
    ACTION_NAMES.assemble,
    ACTION_NAMES.preprocess_assemble,
    ACTION_NAMES.c_compile,
    ACTION_NAMES.cpp_compile,
    ACTION_NAMES.cpp_header_parsing,
]

LINK = [
    ACTION_NAMES.cpp_link_executable,
    ACTION_NAMES.cpp_link_dynamic_library,
    ACTION_NAMES.cpp_link_nodeps_dynamic_library,
]

def flags_for(actions, flags, mode = None):
    """Flags of actions, if need be in one compilation mode only.

    Args:
      actions: COMPILE, LINK or another list of names.
      flags: at least one.
      mode: `dbg`, `fastbuild` or `opt`; all of them without it.

    Returns:
      A flag_set.
    """
    return flag_set(
        actions = actions,
        flag_groups = [flag_group(flags = flags)],
        with_features = [with_feature_set(features = [mode])] if mode else [],
    )
