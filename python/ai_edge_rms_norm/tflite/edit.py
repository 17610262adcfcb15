"""Edits the object tree of a .tflite: operator codes, buffers, tensors, subgraphs.

The tree is that of `ai_edge_litert.schema_py_generated`, as `flatbuffer.read` unpacks
it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

__all__ = [
    "BUFFER_ALIGNMENT",
    "OPTIONAL_TENSOR",
    "AlignedBuffer",
    "append_buffer",
    "called_subgraphs",
    "clear_options",
    "constant_data",
    "custom_options",
    "drop_subgraphs",
    "drop_unused_tensors",
    "interfaces",
    "intern_operator_code",
    "octets",
    "set_metadata",
    "sort_operator_codes",
    "text",
]

# Buffer.data (force_align: 16) in schema.fbs.
BUFFER_ALIGNMENT = 16
# Stands for an operand that is left out (kTfLiteOptionalTensor, core/c/common.h).
OPTIONAL_TENSOR = -1
# Data from this size on is not packed, but appended to the flatbuffer.
APPENDED_SIZE = 4096
# Builtin codes above this do not fit the deprecated int8 field (schema.fbs).
_PLACEHOLDER_FOR_GREATER_OP_CODES = 127
_SUBGRAPH_REFERENCE = re.compile(r"subgraph(index)?$", re.IGNORECASE)


class AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    """A BufferT that packs its data with the schema's alignment.

    The generated `Pack` does not keep it.
    """

    external: np.ndarray | None = None

    @property
    def is_appended(self) -> bool:
        """Whether the data lie outside of the tables, after them in the file."""
        return self.data is not None and len(self.data) >= APPENDED_SIZE

    def Pack(self, builder: flatbuffers.Builder) -> int:
        """Writes the buffer; returns its offset."""
        data = None
        if self.data is not None:
            length = 0 if self.is_appended else len(self.data)
            builder.StartVector(1, length, BUFFER_ALIGNMENT)
            builder.head -= length
            if length:
                content = memoryview(self.data)
                builder.Bytes[builder.head : builder.head + length] = content
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        schema.BufferAddOffset(builder, self.offset)
        schema.BufferAddSize(builder, self.size)
        return int(schema.BufferEnd(builder))


def text(value: bytes | str | None) -> str:
    """Returns a string of the tree, which the generated code reads as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def octets(vector: Iterable[int] | None) -> bytes:
    """Returns a vector of bytes, of whichever type it was read as; b"" for none."""
    return b"" if vector is None else bytes(bytearray(vector))


def custom_options(operator: schema.OperatorT) -> bytes:
    """Returns the custom options of an operator, wherever they are."""
    data = getattr(operator, "external", None)
    return octets(operator.customOptions if data is None else data)


def clear_options(operator: schema.OperatorT) -> None:
    """Removes the options of an operator, of every kind."""
    operator.builtinOptionsType = operator.builtinOptions2Type = 0
    operator.builtinOptions = operator.builtinOptions2 = operator.customOptions = None
    operator.external = None
    operator.largeCustomOptionsOffset = operator.largeCustomOptionsSize = 0


def constant_data(model: schema.ModelT, tensor: schema.TensorT) -> np.ndarray | None:
    """Returns the bytes of a constant tensor; None if it is computed."""
    buffer = model.buffers[tensor.buffer]
    data = buffer.data if buffer.data is not None else buffer.external
    return data if data is not None and len(data) else None


def append_buffer(model: schema.ModelT, data: np.ndarray) -> int:
    """Appends a buffer of uint8 data and returns its index."""
    model.buffers.append(AlignedBuffer(data))
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
    model: schema.ModelT,
    builtin: int,
    custom_code: str | None = None,
    version: int = 1,
) -> int:
    """Returns the index of an operator code, appended if missing."""
    name = None if custom_code is None else custom_code.encode()
    for index, code in enumerate(model.operatorCodes):
        if (code.builtinCode, code.customCode, code.version) == (
            builtin,
            name,
            version,
        ):
            return index
    model.operatorCodes.append(
        schema.OperatorCodeT(
            deprecatedBuiltinCode=min(builtin, _PLACEHOLDER_FOR_GREATER_OP_CODES),
            customCode=name,
            version=version,
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


def _renumber_subgraphs(holder: Any, renumber: Callable[[int], int]) -> None:
    for name, value in vars(holder).items() if holder is not None else ():
        if _SUBGRAPH_REFERENCE.search(name) and value >= 0:
            setattr(holder, name, renumber(value))
        elif name == "branchSubgraphIndices" and value is not None:
            setattr(holder, name, [renumber(index) for index in value])


def called_subgraphs(operator: schema.OperatorT) -> set[int]:
    """Returns the subgraphs that an operator's options refer to."""
    called = set()

    def note(index: int) -> int:
        called.add(index)
        return index

    for options in (operator.builtinOptions, operator.builtinOptions2):
        _renumber_subgraphs(options, note)
    return called


def drop_subgraphs(model: schema.ModelT, dropped: set[int]) -> None:
    """Removes subgraphs and the buffers only they used; not what others refer to."""
    if not dropped:
        return
    pending = [i for i in range(len(model.subgraphs)) if i not in dropped]
    pending += [int(s.subgraphIndex) for s in model.signatureDefs or ()]
    reached = set()
    while pending:  # Those that are kept use others.
        i = pending.pop()
        if i not in reached:
            reached.add(i)
            for operator in model.subgraphs[i].operators:
                pending += called_subgraphs(operator)
    dropped = dropped - reached
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

    _drop_buffers(model, candidates)


def interfaces(model: schema.ModelT) -> dict[int, set[int]]:
    """Returns the tensors that signatures name, by the index of their subgraph."""
    named: dict[int, set[int]] = {}
    for signature in model.signatureDefs or ():
        entries = (*(signature.inputs or ()), *(signature.outputs or ()))
        tensors = named.setdefault(int(signature.subgraphIndex), set())
        tensors.update(int(entry.tensorIndex) for entry in entries)
    return named


def drop_unused_tensors(
    model: schema.ModelT, candidates: Mapping[int, set[int]]
) -> None:
    """Removes those of the candidates that nothing refers to, and their buffers.

    Args:
      model: The model.
      candidates: Tensors by the index of their subgraph.
    """
    named = interfaces(model)
    renumbered: dict[int, dict[int, int]] = {}
    buffers: set[int] = set()
    for s, tensors in candidates.items():
        subgraph = model.subgraphs[s]
        dropped = tensors - _used_tensors(subgraph) - named.get(s, set())
        if dropped:
            buffers.update(subgraph.tensors[i].buffer for i in dropped)
            renumbered[s] = _drop_tensors(subgraph, dropped)
    for signature in model.signatureDefs or ():
        new_index = renumbered.get(int(signature.subgraphIndex))
        if new_index is not None:
            for entry in (*(signature.inputs or ()), *(signature.outputs or ())):
                entry.tensorIndex = new_index[int(entry.tensorIndex)]
    _drop_buffers(model, buffers)


def _used_tensors(subgraph: schema.SubGraphT) -> set[int]:
    used = {int(i) for i in (*subgraph.inputs, *subgraph.outputs)}
    for operator in subgraph.operators:
        for tensors in (operator.inputs, operator.outputs, operator.intermediates):
            used.update(() if tensors is None else map(int, tensors))
    return used


def _drop_tensors(subgraph: schema.SubGraphT, dropped: set[int]) -> dict[int, int]:
    """Removes tensors that nothing refers to; returns the indices of the others."""
    kept = [i for i in range(len(subgraph.tensors)) if i not in dropped]
    new_index = {old: new for new, old in enumerate(kept)}
    new_index[OPTIONAL_TENSOR] = OPTIONAL_TENSOR

    def renumber(indices: Iterable[int] | None) -> list[int] | None:
        return None if indices is None else [new_index[int(i)] for i in indices]

    subgraph.tensors = [subgraph.tensors[i] for i in kept]
    subgraph.inputs = renumber(subgraph.inputs)
    subgraph.outputs = renumber(subgraph.outputs)
    for operator in subgraph.operators:
        operator.inputs = renumber(operator.inputs)
        operator.outputs = renumber(operator.outputs)
        operator.intermediates = renumber(operator.intermediates)
    return new_index


def _drop_buffers(model: schema.ModelT, candidates: set[int]) -> None:
    """Removes those of the candidates that nothing refers to."""
    if not candidates:
        return
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
