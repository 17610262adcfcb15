"""Reads and writes .tflite files through the flatbuffers object API.

The object tree is that of `ai_edge_litert.schema_py_generated`. Weights stay views
of the file they were read from, and are written straight from there: editing a model
copies no weight. Data that lie
outside the flatbuffer in files above 2 GB (`Buffer.offset`,
`Operator.large_custom_options_offset`) are supported.
"""

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm.tflite import edit, files, validate, verify
from ai_edge_rms_norm.tflite.verify import Content

__all__ = [
    "check_header",
    "load",
    "read",
    "read_builtin_codes",
    "to_bytes",
    "write_file",
]

_FILE_IDENTIFIER = b"TFL3"
# Offsets inside a flatbuffer are read as signed where they point backwards.
_MAX_SIZE = 2**31 - 1
# Field `data` of the table Buffer in a vtable (schema.fbs): two entries of 2 bytes
# precede the first field.
_DATA_FIELD = 4


def check_header(content: Content, name: str = "model_content") -> None:
    """Raises for what is not a .tflite at all.

    Raises:
      ValueError: The file identifier is missing.
    """
    if len(content) == 0:
        raise ValueError(f"{name} is not a .tflite: it is empty")
    if len(content) < 8 or content[4:8] != _FILE_IDENTIFIER:
        raise ValueError(
            f"{name} is not a .tflite: expected the file identifier"
            f" {_FILE_IDENTIFIER!r} at byte 4, got {bytes(content[4:8])!r}"
        )


@contextlib.contextmanager
def _damaged(name: str) -> Iterator[None]:
    try:
        yield
    except (verify.VerificationError, validate.ValidationError) as error:
        raise ValueError(f"{name} is a damaged .tflite: {error}") from error


def read(content: Content, name: str = "model") -> schema.ModelT:
    """Unpacks a model; its weights are views of `content`.

    `validate` says on what the result may be relied.

    Args:
      content: The bytes of a .tflite.
      name: The name of the model in errors.

    Raises:
      ValueError: `content` is not a .tflite or is damaged; the error says where.
    """
    check_header(content, name)
    with _damaged(name):
        verify.verify(content)
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        model.buffers = [
            _read_buffer(buffer, content, i)
            for i, buffer in enumerate(model.buffers or ())
        ]
        for s, subgraph in enumerate(model.subgraphs or ()):
            for o, operator in enumerate(subgraph.operators or ()):
                operator.external = _external(
                    content,
                    operator.largeCustomOptionsOffset,
                    operator.largeCustomOptionsSize,
                    f"subgraph {s}, operator {o}: its custom options",
                )
        validate.validate(model)
    return model


def read_builtin_codes(content: Content, name: str = "model") -> set[int]:
    """Returns the builtin codes that a model uses.

    Of a mapped file, nothing else is read.

    Raises:
      ValueError: `content` is not a .tflite, or its operator codes are damaged.
    """
    check_header(content, name)
    with _damaged(name):
        verify.verify_operator_codes(content)
    model = schema.Model.GetRootAs(content)
    codes = (model.OperatorCodes(i) for i in range(model.OperatorCodesLength()))
    return {max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in codes}


def _read_buffer(
    buffer: schema.BufferT, content: Content, index: int
) -> edit.AlignedBuffer:
    aligned = edit.AlignedBuffer(buffer.data, buffer.offset, buffer.size)
    aligned.external = _external(content, buffer.offset, buffer.size, f"buffer {index}")
    return aligned


def _external(content: Content, offset: int, size: int, what: str) -> np.ndarray | None:
    """Returns what lies outside the flatbuffer; offsets 0 and 1 mean: nothing."""
    if offset <= 1:
        return None
    if offset + size > len(content):
        raise validate.ValidationError(
            f"{what}: {size} bytes at byte {offset}, the file has {len(content)}"
        )
    return np.frombuffer(content, np.uint8, count=size, offset=offset)


def _outside(model: schema.ModelT) -> Iterator[tuple[Any, str, np.ndarray]]:
    """Yields what lies outside the flatbuffer: holder, name of its offset, data."""
    for buffer in model.buffers:
        if getattr(buffer, "external", None) is not None:
            yield buffer, "offset", buffer.external
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            if getattr(operator, "external", None) is not None:
                yield operator, "largeCustomOptionsOffset", operator.external


def load(path: str | bytes | os.PathLike[str]) -> schema.ModelT:
    """Unpacks the model at `path`, which is mapped if it is large.

    Raises:
      OSError: The file cannot be read.
      ValueError: It is not a .tflite or is damaged.
    """
    return read(files.read_file(path), os.fsdecode(path))


def _pack(model: schema.ModelT) -> bytearray:
    """Packs everything but the appended data, whose vectors are left empty."""
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
    packed: bytearray = builder.Output()
    return packed


class _Placement:
    """Where data lies that follow the packed tables; the same data lie there once."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.pieces: list[tuple[int, np.ndarray]] = []
        self._known: dict[tuple[int, int], int] = {}

    def place(self, data: np.ndarray, prefix: int) -> int:
        """Returns the aligned start of data, `prefix` bytes kept free before it."""
        array: np.ndarray = np.asarray(memoryview(data))  # type: ignore[arg-type]
        key = (array.__array_interface__["data"][0], len(array))
        if key not in self._known:
            start = self.position + prefix
            start += -start % edit.BUFFER_ALIGNMENT
            self._known[key] = start
            self.pieces.append((start, array))
            self.position = start + len(array)
        return self._known[key]


def _chunks(model: schema.ModelT) -> list[bytes | bytearray | memoryview]:
    """Returns the pieces of the file: tables, appended data, what lies outside.

    A vector is its length in 4 bytes and its data, and a field holds its distance to
    the vector, which lies behind the field. So the data may follow the packed tables.
    """
    packed = _pack(model)
    appended = _Placement(len(packed))
    starts = {
        i: appended.place(buffer.data, prefix=4)
        for i, buffer in enumerate(model.buffers)
        if getattr(buffer, "is_appended", False)
    }
    if appended.position > _MAX_SIZE:
        raise ValueError(
            f"a .tflite holds at most {_MAX_SIZE} bytes inside its flatbuffer, got"
            f" {appended.position}; larger models keep weights outside (Buffer.offset)"
        )
    outside = _Placement(appended.position)
    for holder, field, data in _outside(model):
        setattr(holder, field, outside.place(data, prefix=0))
    if outside.pieces:
        # Offsets are fixed-width and non-zero before and after, so that packing
        # again with the right ones does not change the size.
        packed = _pack(model)
    root = schema.Model.GetRootAs(packed)
    for i, start in starts.items():
        table = root.Buffers(i)._tab  # noqa: SLF001
        field = table.Pos + table.Offset(_DATA_FIELD)
        struct.pack_into("<I", packed, field, start - 4 - field)

    chunks: list[bytes | bytearray | memoryview] = [packed]
    position = len(packed)
    for placement, prefix in ((appended, True), (outside, False)):
        for start, array in placement.pieces:
            length = struct.pack("<I", len(array)) if prefix else b""
            chunks.append(bytes(start - len(length) - position) + length)
            chunks.append(memoryview(array))  # type: ignore[arg-type]
            position = start + len(array)
    return chunks


def to_bytes(model: schema.ModelT) -> bytes:
    """Packs a model into the bytes of a .tflite."""
    return b"".join(_chunks(model))


def write_file(
    path: str | bytes | os.PathLike[str], content: bytes | schema.ModelT
) -> None:
    """Writes a model to `path`, completely or not at all; see `files.write_file`.

    Raises:
      OSError: The file cannot be written.
      ValueError: The model is too large for a .tflite.
    """
    chunks = _chunks(content) if isinstance(content, schema.ModelT) else [content]
    files.write_file(path, chunks)
