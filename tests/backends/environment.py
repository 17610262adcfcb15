"""The Python environment of the other runtimes, for workers in their own processes."""

import functools
import pathlib
import subprocess

from absl.testing import absltest

from third_party.python import make_environment

_LOCK = "third_party/python/requirements-backends.lock"


@functools.cache
def _make() -> tuple[str, str | None]:
    """Returns the interpreter, or what went wrong."""
    lock = pathlib.Path(__file__).absolute().parents[2] / _LOCK
    try:
        return str(make_environment.environment(lock)), None
    except (OSError, subprocess.CalledProcessError) as error:
        return "", f"{_LOCK} cannot be installed: {error}"


def python() -> str:
    """Returns the interpreter; pip makes the environment if need be.

    Raises:
      absltest.SkipTest: pip failed.
    """
    interpreter, reason = _make()
    if reason:
        raise absltest.SkipTest(reason)
    return interpreter
