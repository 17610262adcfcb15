"""Python code in a process of its own, which may crash or hang; imports nothing."""

import subprocess
import sys

__all__ = ["run_python"]


def run_python(
    code: str, *arguments: str, timeout: float
) -> "subprocess.CompletedProcess[str]":
    """Runs code that finds the modules which this process finds.

    Args:
      code: What to run.
      *arguments: Its `sys.argv[1:]`.
      timeout: Seconds after which the process is killed.

    Raises:
      subprocess.TimeoutExpired: It was.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        timeout=timeout,
    )
