"""Prints the bytes of private memory that an interpreter takes once it has run.

    memory.py MODEL THREADS [DELEGATE]

Arenas, packed weights and what XNNPACK keeps besides: the growth of the anonymous
resident memory, so not the model, which is mapped. A process of its own, since
memory that was freed before is not given back reliably. Imports no torch.
"""

import pathlib
import re
import sys

from ai_edge_litert import interpreter as litert

__all__ = ["measure"]


def _anonymous() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


def measure(model: str, threads: int, delegate: str | None = None) -> int:
    """Returns the bytes by which this process grows with an interpreter that ran.

    Args:
      model: Path of a .tflite.
      threads: Number of threads.
      delegate: Path of an external delegate.
    """
    delegates = [litert.load_delegate(delegate)] if delegate else None
    before = _anonymous()
    interpreter = litert.Interpreter(
        model_path=model, num_threads=threads, experimental_delegates=delegates
    )
    interpreter.allocate_tensors()
    interpreter.invoke()
    return _anonymous() - before


if __name__ == "__main__":
    print(measure(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
