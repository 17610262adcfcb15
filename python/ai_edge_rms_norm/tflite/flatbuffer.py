"""Reads and writes .tflite files through the flatbuffers object API.

The object tree is that of `ai_edge_litert.schema_py_generated`. Weights stay views
of the file they were read from, and are written straight from there: editing a model
copies no weight. What lies
outside the flatbuffer in files above 2 GB (`Buffer.offset`,
`Operator.large_custom_options_offset`) is supported.
"""

import contextlib
import mmap
import os
import pathlib
import stat
import struct
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm.tflite import edit

__all__ = [
    "damaged",
    "load",
    "map_file",
    "read",
    "to_bytes",
    "write_file",
]

_FILE_IDENTIFIER = b"TFL3"
# Offsets inside a flatbuffer are read as signed where they point backwards.
_MAX_SIZE = 2**31 - 1
# Field `data` of the table Buffer in a vtable (schema.fbs): two entries of 2 bytes
# precede the first field.
_DATA_FIELD = 4


def check_header(content: bytes | mmap.mmap, name: str = "model_content") -> None:
    if len(content) < 8 or content[4:8] != _FILE_IDENTIFIER:
        raise ValueError(
            f"{name} is no .tflite: expected the file identifier"
            f" {_FILE_IDENTIFIER!r} at byte 4, got {bytes(content[4:8])!r}"
        )


@contextlib.contextmanager
def damaged(name: str) -> Iterator[None]:
    """Makes a ValueError of whatever reading beyond the end provokes."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{name} is a damaged .tflite: {error}") from error


def read(content: bytes | mmap.mmap, name: str = "model") -> schema.ModelT:
    """Unpacks a model; its weights are views of `content`.

    Args:
      content: The bytes of a .tflite.
      name: What to call the model in errors.

    Raises:
      ValueError: `content` is no .tflite or is damaged.
    """
    check_header(content, name)
    with damaged(name):
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        model.buffers = [_read_buffer(buffer, content) for buffer in model.buffers]
        for code in model.operatorCodes or ():
            # As TFLite's GetBuiltinCode: old files have the deprecated field only.
            code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
        for subgraph in model.subgraphs:
            for field in ("tensors", "operators", "inputs", "outputs"):
                if getattr(subgraph, field) is None:
                    setattr(subgraph, field, [])
            for operator in subgraph.operators:
                operator.external = _external(
                    content,
                    operator.largeCustomOptionsOffset,
                    operator.largeCustomOptionsSize,
                )
        _check_references(model)
    return model


def _read_buffer(
    buffer: schema.BufferT, content: bytes | mmap.mmap
) -> edit.AlignedBuffer:
    aligned = edit.AlignedBuffer(buffer.data, buffer.offset, buffer.size)
    aligned.external = _external(content, buffer.offset, buffer.size)
    return aligned


def _external(content: bytes | mmap.mmap, offset: int, size: int) -> np.ndarray | None:
    """Returns what lies outside the flatbuffer; offsets 0 and 1 mean: nothing."""
    if offset <= 1:
        return None
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


def _check_references(model: schema.ModelT) -> None:
    """Raises for an index that points at nothing."""

    def check(what: str, indices, size: int, first: int = 0) -> None:
        for index in indices if indices is not None else ():
            if not first <= index < size:
                raise ValueError(f"{what} {index}, there are {size}")

    buffers, codes = len(model.buffers), len(model.operatorCodes or ())
    for s, subgraph in enumerate(model.subgraphs):
        tensors = len(subgraph.tensors)
        check(
            "a tensor refers to buffer", [t.buffer for t in subgraph.tensors], buffers
        )
        for indices in (subgraph.inputs, subgraph.outputs):
            name = f"subgraph {s} has as input or output the tensor"
            check(name, indices, tensors, edit.OPTIONAL_TENSOR)
        for o, operator in enumerate(subgraph.operators):
            name = f"subgraph {s}, operator {o}"
            check(f"{name} has operator code", [operator.opcodeIndex], codes)
            for indices in (operator.inputs, operator.outputs, operator.intermediates):
                check(
                    f"{name} refers to tensor", indices, tensors, edit.OPTIONAL_TENSOR
                )
            called = edit.called_subgraphs(operator)
            check(f"{name} refers to subgraph", called, len(model.subgraphs))
    for signature in model.signatureDefs or ():
        index = signature.subgraphIndex
        check("a signature refers to subgraph", [index], len(model.subgraphs))
        entries = (*(signature.inputs or ()), *(signature.outputs or ()))
        tensors = len(model.subgraphs[index].tensors)
        check("a signature refers to tensor", [e.tensorIndex for e in entries], tensors)
    check("metadata refer to buffer", [m.buffer for m in model.metadata or ()], buffers)
    check("metadata_buffer refers to buffer", model.metadataBuffer, buffers)


def load(path: str | os.PathLike) -> schema.ModelT:
    """Unpacks the model at `path`, which is mapped, not copied.

    Raises:
      OSError: The file cannot be read.
      ValueError: It is no .tflite or is damaged.
    """
    return read(map_file(path), os.fspath(path))


def map_file(path: str | os.PathLike) -> mmap.mmap:
    """Maps a .tflite read-only.

    Raises:
      OSError: The file cannot be read.
      ValueError: It is no .tflite.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # mmap refuses it unnamed.
            raise ValueError(f"{os.fspath(path)} is no .tflite: the file is empty")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    check_header(content, os.fspath(path))
    return content


def _pack(model: schema.ModelT) -> bytearray:
    """Packs everything but the appended data, whose vectors are left empty."""
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
    return builder.Output()


def _aligned(position: int) -> int:
    return position + -position % edit.BUFFER_ALIGNMENT


def _chunks(model: schema.ModelT) -> Iterator[bytes | memoryview]:
    """Yields the pieces of the file: tables, appended data, what lies outside.

    A vector is its length in 4 bytes and its data, and a field holds its distance to
    the vector, which lies behind the field. So the data may follow the packed tables.
    """
    packed = _pack(model)
    appended, external = {}, []
    position = len(packed)
    for i, buffer in enumerate(model.buffers):
        if getattr(buffer, "is_appended", False):
            appended[i] = position = _aligned(position + 4)
            position += len(buffer.data)
    if position > _MAX_SIZE:
        raise ValueError(
            f"a .tflite holds at most {_MAX_SIZE} bytes inside its flatbuffer, got"
            f" {position}; larger models keep weights outside (Buffer.offset)"
        )
    for holder, field, data in _outside(model):
        position = _aligned(position)
        external.append((position, data))
        setattr(holder, field, position)
        position += len(data)
    if external:
        # Offsets are fixed-width and non-zero before and after, so that packing
        # again with the right ones does not change the size.
        packed = _pack(model)
    root = schema.Model.GetRootAs(packed)
    for i, start in appended.items():
        table = root.Buffers(i)._tab
        field = table.Pos + table.Offset(_DATA_FIELD)
        struct.pack_into("<I", packed, field, start - 4 - field)

    yield packed
    position = len(packed)
    for i, start in appended.items():
        data = model.buffers[i].data
        yield bytes(start - 4 - position) + struct.pack("<I", len(data))
        yield memoryview(data)
        position = start + len(data)
    for start, data in external:
        yield bytes(start - position)
        yield memoryview(data)
        position = start + len(data)


def to_bytes(model: schema.ModelT) -> bytes:
    """Packs a model into the bytes of a .tflite."""
    return b"".join(_chunks(model))


def write_file(
    path: str | os.PathLike, content: bytes | schema.ModelT | Iterable[memoryview]
) -> None:
    """Writes a model to `path`, completely or not at all.

    The bytes go to a temporary file in the same folder, which is then renamed;
    missing parent folders are made. A link stays one: the file that it leads to is
    replaced. A device or pipe, like /dev/null, is written to.

    Raises:
      OSError: The file cannot be written.
    """
    chunks = _chunks(content) if isinstance(content, schema.ModelT) else [content]
    # Before links are followed: that of /dev/stdout may lead to no name.
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        with open(path, "wb") as file:
            file.writelines(chunks)
        return
    path = pathlib.Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(chunks)
        # mkstemp makes private files; a model gets the mode that open() would give.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
