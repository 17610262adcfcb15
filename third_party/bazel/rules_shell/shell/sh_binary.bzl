"""The rule of rules_shell, as the one that Bazel 4 has built in."""

sh_binary = native.sh_binary
