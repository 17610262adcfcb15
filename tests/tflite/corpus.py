"""Pieces of files that are hard to read right."""

import struct

import numpy as np
from flatbuffers import flexbuffers


def decomposition(b, shape, axes=-1, dtype=np.float32):
    """Appends a subgraph that is a norm of x of that shape; returns its index."""
    with b.branch(b"decomposition") as index:
        x, weight = b.input(shape, dtype), b.input((16,))
        mean = b.reduce("MEAN", b("MUL", x, x), axes)
        inverse = b("RSQRT", b("ADD", mean, b.constant(1e-3)))
        b.subgraph.outputs = [b("MUL", b("MUL", x, inverse), weight)]
    return index


def shared_vectors() -> bytes:
    """{"epsilon": 1, "nested": ...}: 16^8 leaves, which unpacking would visit."""
    content = bytearray(b"epsilon\0nested\0" + bytes([2, 16, 9]))
    keys = 16
    content += bytes([16])
    start, kind = len(content), flexbuffers.Type.VECTOR_INT
    content += bytes([1] * 16)
    for _ in range(8):
        content += bytes([16])
        first = len(content)
        content += bytes(first + i - start for i in range(16)) + bytes([kind << 2] * 16)
        start, kind = first, flexbuffers.Type.VECTOR
    # Two bytes each: where the keys are, their width, the number of values, values.
    content += struct.pack("<HHHH", len(content) - keys, 1, 2, 1)
    content += struct.pack("<H", len(content) - start)
    content += bytes([flexbuffers.Type.INT << 2 | 1, kind << 2])
    return bytes(content + bytes([6, flexbuffers.Type.MAP << 2 | 1, 1]))
