"""Tests in another Python environment than the toolchain's."""

load("@rules_shell//shell:sh_test.bzl", "sh_test")

def environment_py_test(name, environment, src = None, args = [], data = [], **kwargs):
    """A Python test that runs in an environment of its own.

    Args:
      name: Name of the test.
      environment: Name of the repository that `python_environment` makes.
      src: The test's file, default `name` + ".py".
      args: Arguments of the test.
      data: Its run-time needs, Python libraries included.
      **kwargs: Other attributes of a test.
    """
    src = src or name + ".py"
    interpreter = "@{}//:python".format(environment)
    sh_test(
        name = name,
        srcs = ["//third_party/python:run_in_environment.sh"],
        args = [
            "$(rootpath {})".format(interpreter),
            "$(rootpath {})".format(src),
        ] + args,
        data = [
            src,
            interpreter,
        ] + data,
        # The environment is this machine's.
        target_compatible_with = ["//third_party/toolchains:native"],
        **kwargs
    )
