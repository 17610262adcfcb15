"""The rule of rules_shell, as the one that Bazel 4 has built in."""

sh_test = native.sh_test
