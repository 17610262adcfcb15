"""Flags of rules_python that .bazelrc sets; Bazel 4 has nothing for them to change."""

def _string_flag_impl(_ctx):
    pass

string_flag = rule(
    implementation = _string_flag_impl,
    build_setting = config.string(flag = True),
    doc = "A flag that is accepted and ignored.",
)
