"""Reads, edits and writes .tflite files through the flatbuffers object API.

The object tree is that of `ai_edge_litert.schema_py_generated`. Weights stay views
of the file they were read from, and are written with the 16-byte alignment that the
schema asks for (`Buffer.data (force_align: 16)`), which the generated `Pack` does not
keep. Buffers outside the flatbuffer (`Buffer.offset`, files above 2 GB) are supported.
"""

import mmap
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

__all__ = [
    "append_buffer",
    "drop_subgraphs",
    "intern_operator_code",
    "load",
    "map_file",
    "read",
    "set_metadata",
    "sort_operator_codes",
    "to_bytes",
    "write_file",
]

_FILE_IDENTIFIER = b"TFL3"
_BUFFER_ALIGNMENT = 16
# Builtin codes above this do not fit the deprecated int8 field (schema.fbs).
_PLACEHOLDER_FOR_GREATER_OP_CODES = 127
_SUBGRAPH_REFERENCE = re.compile(r"subgraph(index)?$", re.IGNORECASE)


class _AlignedBuffer(schema.BufferT):
    """A BufferT that packs its data with the schema's alignment."""

    external: np.ndarray | None = None

    def Pack(self, builder: flatbuffers.Builder) -> int:
        data = None
        if self.data is not None:
            length = len(self.data)
            builder.StartVector(1, length, _BUFFER_ALIGNMENT)
            builder.head -= length
            builder.Bytes[builder.head : builder.head + length] = memoryview(self.data)
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        schema.BufferAddOffset(builder, self.offset)
        schema.BufferAddSize(builder, self.size)
        return schema.BufferEnd(builder)


def check_header(content: bytes | mmap.mmap, name: str = "model_content") -> None:
    if len(content) < 8 or content[4:8] != _FILE_IDENTIFIER:
        raise ValueError(
            f"{name} is no .tflite: expected the file identifier"
            f" {_FILE_IDENTIFIER!r} at byte 4, got {bytes(content[4:8])!r}"
        )


def read(content: bytes | mmap.mmap, name: str = "model") -> schema.ModelT:
    """Unpacks a model; its weights are views of `content`.

    Args:
      content: The bytes of a .tflite.
      name: What to call the model in errors.

    Raises:
      ValueError: `content` is no .tflite or is damaged.
    """
    check_header(content, name)
    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        model.buffers = [_read_buffer(buffer, content) for buffer in model.buffers]
    except Exception as error:  # Whatever reading beyond the end provokes.
        raise ValueError(f"{name} is a damaged .tflite: {error}") from error
    return model


def _read_buffer(buffer: schema.BufferT, content: bytes | mmap.mmap) -> _AlignedBuffer:
    aligned = _AlignedBuffer(buffer.data, buffer.offset, buffer.size)
    if buffer.offset > 1:  # 0 and 1 mean: not outside the flatbuffer.
        aligned.external = np.frombuffer(
            content, np.uint8, count=buffer.size, offset=buffer.offset
        )
    return aligned


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


def _pack(model: schema.ModelT) -> memoryview:
    # One allocation that fits: growing a builder copies everything each time.
    weights = sum(len(b.data) for b in model.buffers if b.data is not None)
    builder = flatbuffers.Builder(weights + (1 << 16))
    builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
    return memoryview(builder.Bytes)[builder.Head() :]


def _chunks(model: schema.ModelT) -> Iterator[memoryview]:
    """Yields the pieces of the file: the flatbuffer, then external buffers."""
    external = [b for b in model.buffers if getattr(b, "external", None) is not None]
    packed = _pack(model)
    if external:
        # The offsets are fixed-width and non-zero before and after, so that packing
        # again with the right ones does not change the size.
        position = len(packed)
        for buffer in external:
            position += -position % _BUFFER_ALIGNMENT
            buffer.offset = position
            position += buffer.size
        packed = _pack(model)
    yield packed
    position = len(packed)
    for buffer in external:
        yield memoryview(bytes(buffer.offset - position))
        yield memoryview(buffer.external)
        position = buffer.offset + buffer.size


def to_bytes(model: schema.ModelT) -> bytes:
    """Packs a model into the bytes of a .tflite."""
    return b"".join(_chunks(model))


def write_file(
    path: str | os.PathLike, content: bytes | schema.ModelT | Iterable[memoryview]
) -> None:
    """Writes a model to `path`, completely or not at all.

    The bytes go to a temporary file in the same folder, which is then renamed;
    missing parent folders are made.

    Raises:
      OSError: The file cannot be written.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = _chunks(content) if isinstance(content, schema.ModelT) else [content]
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
        # mkstemp makes private files; a model gets the mode that open() would give.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def append_buffer(model: schema.ModelT, data: np.ndarray) -> int:
    """Appends a buffer of uint8 data and returns its index."""
    model.buffers.append(_AlignedBuffer(data))
    return len(model.buffers) - 1


def set_metadata(model: schema.ModelT, name: str, value: bytes) -> None:
    """Sets a metadata entry of the model, new or existing."""
    data = np.frombuffer(value, np.uint8)
    model.metadata = model.metadata or []
    for entry in model.metadata:
        if entry.name == name.encode():
            model.buffers[entry.buffer].data = data
            return
    buffer = append_buffer(model, data)
    model.metadata.append(schema.MetadataT(name=name.encode(), buffer=buffer))


def intern_operator_code(
    model: schema.ModelT, builtin: int, custom_code: str | None = None
) -> int:
    """Returns the index of an operator code of version 1, appended if missing."""
    name = None if custom_code is None else custom_code.encode()
    for index, code in enumerate(model.operatorCodes):
        if (code.builtinCode, code.customCode, code.version) == (builtin, name, 1):
            return index
    model.operatorCodes.append(
        schema.OperatorCodeT(
            deprecatedBuiltinCode=min(builtin, _PLACEHOLDER_FOR_GREATER_OP_CODES),
            customCode=name,
            version=1,
            builtinCode=builtin,
        )
    )
    return len(model.operatorCodes) - 1


def sort_operator_codes(model: schema.ModelT) -> None:
    """Keeps the operator codes in use, in the order of their first use.

    That is the order in which the converters write them.
    """
    used: dict[int, int] = {}
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            operator.opcodeIndex = used.setdefault(operator.opcodeIndex, len(used))
    model.operatorCodes = [model.operatorCodes[old] for old in used]


def _renumber_subgraphs(holder, renumber: Callable[[int], int]) -> None:
    for name, value in vars(holder).items() if holder is not None else ():
        if _SUBGRAPH_REFERENCE.search(name) and value >= 0:
            setattr(holder, name, renumber(value))
        elif name == "branchSubgraphIndices" and value is not None:
            setattr(holder, name, [renumber(index) for index in value])


def drop_subgraphs(model: schema.ModelT, dropped: set[int]) -> None:
    """Removes subgraphs that nothing refers to, and the buffers only they used."""
    if not dropped:
        return
    candidates = {t.buffer for i in dropped for t in model.subgraphs[i].tensors}
    kept = [i for i in range(len(model.subgraphs)) if i not in dropped]
    model.subgraphs = [model.subgraphs[i] for i in kept]
    new_index = {old: new for new, old in enumerate(kept)}
    for signature in model.signatureDefs or ():
        _renumber_subgraphs(signature, new_index.__getitem__)
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            _renumber_subgraphs(operator.builtinOptions, new_index.__getitem__)
            _renumber_subgraphs(operator.builtinOptions2, new_index.__getitem__)

    holders = [t for subgraph in model.subgraphs for t in subgraph.tensors]
    holders += model.metadata or []
    unused = candidates - {holder.buffer for holder in holders} - {0}
    kept = [i for i in range(len(model.buffers)) if i not in unused]
    model.buffers = [model.buffers[i] for i in kept]
    new_index = {old: new for new, old in enumerate(kept)}
    for holder in holders:
        holder.buffer = new_index[holder.buffer]
    if model.metadataBuffer is not None:
        model.metadataBuffer = [new_index[i] for i in model.metadataBuffer]
