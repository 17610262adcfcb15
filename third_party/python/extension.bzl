"""The Python environments as a module extension, for MODULE.bazel."""

load(":environments.bzl", "python_environments")

def _python_impl(_module_ctx):
    python_environments()

python = module_extension(implementation = _python_impl)
