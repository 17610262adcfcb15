"""Python virtual environments made by pip from a lock file.

`python_environment` is a repository rule that serves both modes: called from WORKSPACE
through `python_environments()`, from MODULE.bazel through `extension.bzl`. The
environment itself lies in a cache outside Bazel's output and is shared by checkouts; it
is made anew when the lock file or the interpreter changes.
"""

# make_environment() depends on these.
ENVIRON = ["PYTHON_BIN_PATH", "XDG_CACHE_HOME"]

_BUILD = """\
load("@rules_python//python:defs.bzl", "py_runtime", "py_runtime_pair")

package(default_visibility = ["//visibility:public"])

py_runtime(
    name = "runtime",
    interpreter_path = "{python}",
    python_version = "PY3",
)

py_runtime_pair(
    name = "runtime_pair",
    py3_runtime = ":runtime",
)

toolchain(
    name = "toolchain",
    toolchain = ":runtime_pair",
    toolchain_type = "@rules_python//python:toolchain_type",
)

# The interpreter as a file, for tests of an environment that is not the toolchain's.
exports_files(["python"])
"""

def make_environment(repository_ctx, lock, script):
    """Makes the virtual environment of a lock file.

    Args:
      repository_ctx: of a rule with the variables ENVIRON.
      lock: label of the lock file.
      script: label of make_environment.py.

    Returns:
      The path of its interpreter.
    """
    lock = repository_ctx.path(lock)
    script = repository_ctx.path(script)

    # Bazel 8 does not watch a label that is only given to path(); Bazel 4 has no
    # watch() and does.
    if hasattr(repository_ctx, "watch"):
        repository_ctx.watch(lock)
        repository_ctx.watch(script)
    environment = repository_ctx.os.environ
    python = environment.get("PYTHON_BIN_PATH") or repository_ctx.which("python3")
    if not python:
        fail("python3 is not on PATH; Python 3.11 is needed")
    repository_ctx.report_progress("Installing {} with pip".format(lock.basename))
    result = repository_ctx.execute([python, script, lock], timeout = 3600)
    if result.return_code != 0:
        fail("the Python environment of {} could not be made:\n{}".format(
            lock.basename,
            result.stderr,
        ))
    return result.stdout.strip()

def _python_environment_impl(repository_ctx):
    machine = repository_ctx.execute(["uname", "-m"]).stdout.strip()
    lock = repository_ctx.attr.locks.get(machine)
    if not lock:
        fail("there is no lock file of {} for {}; there is one for {}".format(
            repository_ctx.name,
            machine,
            ", ".join(repository_ctx.attr.locks.keys()),
        ))
    interpreter = make_environment(
        repository_ctx,
        Label(lock),
        repository_ctx.attr._script,
    )
    repository_ctx.symlink(interpreter, "python")
    repository_ctx.file("BUILD", _BUILD.format(python = interpreter))

python_environment = repository_rule(
    implementation = _python_environment_impl,
    attrs = {
        "locks": attr.string_dict(
            doc = "By machine (as `uname -m` prints it) the label of the lock file, " +
                  "which names every package with its exact version.",
            mandatory = True,
        ),
        "_script": attr.label(default = "//third_party/python:make_environment.py"),
    },
    doc = "A virtual environment and the Python toolchain that runs in it.",
    environ = ENVIRON,
)

def python_environments():
    """Declares the environments; each is made when a target first needs it."""
    python_environment(
        name = "python_environment",
        locks = {
            "aarch64": "@ai_edge_rms_norm//third_party/python:requirements-aarch64.lock",
            "x86_64": "@ai_edge_rms_norm//third_party/python:requirements.lock",
        },
    )
    python_environment(
        name = "python_environment_tensorflow",
        locks = {
            # There TensorFlow is the only converter, so it is in the one above.
            "aarch64": "@ai_edge_rms_norm//third_party/python:requirements-aarch64.lock",
            "x86_64": "@ai_edge_rms_norm//third_party/python:requirements-tensorflow.lock",
        },
    )
    python_environment(
        name = "python_environment_ai_edge_torch",
        locks = {
            machine: "@ai_edge_rms_norm//third_party/python:requirements-aarch64.lock"
            for machine in ["aarch64", "x86_64"]
        },
    )
