"""Time and memory of fusing and translating models with many norms.

    scaling.py [--norms 10 100 1000 10000] [--weight-megabytes 1 64]

Each row is a process of its own: the seconds of its CPU to read, fuse or translate, and
write a model in memory, and the growth of the peak of its resident memory.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import time

import numpy as np

from ai_edge_rms_norm.tflite import encoding, flatbuffer, fuse
from testing.tflite_builder import Builder

_SIZE = 16
_EPSILON = 1e-6
_KINDS = ("decomposed", "range_safe", "composite", "custom")


def _plain(norms: int, megabytes: float) -> bytes:
    """A chain of norms, each with its weight, and one large constant."""
    b = Builder()
    y = x = b.input((4, _SIZE))
    for _ in range(norms):
        mean = b.reduce("MEAN", b("MUL", y, y))
        inverse = b("RSQRT", b("ADD", mean, b.constant(_EPSILON)))
        y = b("MUL", b("MUL", y, inverse), b.constant(np.ones(_SIZE)))
    rows = max(int(megabytes * 2**20) // (4 * _SIZE), 1)
    matrix = b.constant(np.zeros((rows, _SIZE), np.float32))
    if megabytes >= 2048:  # More than fits into the flatbuffer.
        large = b.model.buffers[b.subgraph.tensors[matrix].buffer]
        large.external, large.offset, large.size = large.data, 16, len(large.data)
        large.data = None
    z = b("FULLY_CONNECTED", x, matrix, -1, shape=(4, rows))
    return b.content(y, z)


def make(kind: str, norms: int, megabytes: float) -> bytes:
    """Returns a model with its norms in one encoding."""
    content = _plain(norms, megabytes)
    if kind == "decomposed":
        return content
    model = flatbuffer.read(content)
    to = encoding.Encoding("decomposed" if kind == "range_safe" else kind)
    fuse.fuse_model(model, to)
    return flatbuffer.to_bytes(model)


def _peak() -> int:
    """Returns the largest resident memory so far, in bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def measure(kind: str, norms: int, megabytes: float) -> None:
    """Prints one row."""
    content = make(kind, norms, megabytes)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
    before, start = _peak(), time.process_time()
    model = flatbuffer.read(content)
    read = time.process_time()
    if kind == "custom":  # Into decomposed operators.
        encoding.translate_model(model, encoding.Encoding.DECOMPOSED)
    else:
        report = fuse.fuse_model(model)
        assert len(report.fused) == norms, report
    done = time.process_time()
    flatbuffer.to_bytes(model)
    end = time.process_time()
    print(
        f"{kind:>10} {norms:>6} {len(content) / 2**20:>8.1f} {read - start:>8.3f}"
        f" {done - read:>8.3f} {end - done:>8.3f} {(_peak() - before) / 2**20:>8.1f}"
    )


def main() -> None:
    """Measures every row in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--norms", type=int, nargs="+", default=[10, 100, 1000, 10000])
    parser.add_argument("--weight-megabytes", type=float, nargs="+", default=[1.0])
    parser.add_argument("--kinds", nargs="+", default=_KINDS, choices=_KINDS)
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        kind, norms, megabytes = args.row
        measure(kind, int(norms), float(megabytes))
        return
    print("      kind  norms  file MB   read s   edit s  write s  peak MB")
    for kind in args.kinds:
        for megabytes in args.weight_megabytes:
            for norms in args.norms:
                row = [kind, str(norms), str(megabytes)]
                subprocess.run([sys.executable, __file__, "--row", *row], check=True)


if __name__ == "__main__":
    main()
