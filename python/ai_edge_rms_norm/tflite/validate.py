"""Validates an unpacked .tflite: the one place that looks for what is malformed.

Later code may rely on this: every index refers to something; `subgraphs`, `buffers`,
`operatorCodes` and the lists of a subgraph are lists; the operands of an operator are
arrays of int32; a tensor has a name (bytes, not always UTF-8) and a shape; a constant
has all of its elements; options are None or of the type that belongs to the operator;
subgraphs do not call themselves.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm.tflite import edit

__all__ = ["ValidationError", "validate"]

# TFLite's TFLITE_SCHEMA_VERSION; runtimes reject every other one.
_VERSION = 3
_OP = schema.BuiltinOperator
_OPTIONS = {
    _OP.ADD: schema.AddOptionsT,
    _OP.CAST: schema.CastOptionsT,
    _OP.DIV: schema.DivOptionsT,
    _OP.MEAN: schema.ReducerOptionsT,
    _OP.MUL: schema.MulOptionsT,
    _OP.REDUCE_MAX: schema.ReducerOptionsT,
    _OP.RESHAPE: schema.ReshapeOptionsT,
    _OP.SQUEEZE: schema.SqueezeOptionsT,
    _OP.SUB: schema.SubOptionsT,
    _OP.SUM: schema.ReducerOptionsT,
}
# Nothing can be said about these without their options.
_REQUIRED_OPTIONS_2 = {
    _OP.STABLEHLO_COMPOSITE: (schema.StableHLOCompositeOptionsT, "name"),
    _OP.STABLEHLO_CUSTOM_CALL: (schema.StablehloCustomCallOptionsT, "callTargetName"),
}
_OPERATOR_NAMES = {
    value: name for name, value in vars(_OP).items() if isinstance(value, int)
}
_TYPE_NAMES = {
    value: name
    for name, value in vars(schema.TensorType).items()
    if isinstance(value, int)
}
# Of the types of which every element takes whole bytes.
_TYPE_SIZES = {
    getattr(schema.TensorType, name): size
    for size, names in {
        1: ("INT8", "UINT8", "BOOL"),
        2: ("FLOAT16", "BFLOAT16", "INT16", "UINT16"),
        4: ("FLOAT32", "INT32", "UINT32"),
        8: ("FLOAT64", "INT64", "UINT64", "COMPLEX64"),
    }.items()
    for name in names
}


class ValidationError(ValueError):
    """Names the part of the model that is malformed, and how."""


def _check_indices(
    indices: Iterable[int], size: int, what: str, optional: bool = False
) -> None:
    first = edit.OPTIONAL_TENSOR if optional else 0
    for index in indices:
        if not first <= index < size:
            raise ValidationError(f"{what} {index}, there are {size}")


def _text(value: bytes | None, what: str) -> str:
    if value is None:
        raise ValidationError(f"{what} is missing")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValidationError(f"{what} is not UTF-8: {value[:80]!r}") from None


def _array(indices: Any) -> np.ndarray:
    return np.empty(0, np.int32) if indices is None else indices


def _fill_in(model: schema.ModelT) -> None:
    """Makes an empty value of each vector that is left out, which means the same."""
    for holder in (model, *(model.subgraphs or ())):
        for field in ("operatorCodes", "subgraphs", "buffers", "tensors", "operators"):
            if getattr(holder, field, []) is None:
                setattr(holder, field, [])
    for subgraph in model.subgraphs:
        for holder in (subgraph, *subgraph.operators):
            holder.inputs = _array(holder.inputs)
            holder.outputs = _array(holder.outputs)
        for tensor in subgraph.tensors:
            tensor.shape = _array(tensor.shape)
            tensor.name = tensor.name or b""


def _check_codes(model: schema.ModelT) -> None:
    for i, code in enumerate(model.operatorCodes):
        # As TFLite's GetBuiltinCode: old files have the deprecated field only.
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
        if code.builtinCode == _OP.CUSTOM:
            _text(code.customCode, f"the custom code of operator code {i}")


def _check_tensor(model: schema.ModelT, tensor: schema.TensorT, constant: bool) -> None:
    shape = tensor.shape.tolist()
    size = _TYPE_SIZES.get(tensor.type)
    if size is not None and min(shape, default=0) < 0:
        raise ValidationError(f"shape {shape} has a negative dimension")
    signature = tensor.shapeSignature
    if signature is not None and len(signature) not in (0, len(shape)):
        raise ValidationError(
            f"shape_signature {signature.tolist()} has another rank than shape {shape}"
        )
    if not constant or size is None or tensor.sparsity is not None:
        return
    expected, stored = size * math.prod(shape), _data_size(model, tensor)
    if stored < expected:
        raise ValidationError(
            f"{_TYPE_NAMES[tensor.type]} of shape {shape} must have {expected} bytes,"
            f" buffer {tensor.buffer} has {stored}"
        )


def _data_size(model: schema.ModelT, tensor: schema.TensorT) -> int:
    data = edit.constant_data(model, tensor)
    return 0 if data is None else len(data)


def _check_options(operator: schema.OperatorT, builtin: int) -> None:
    for options, expected in (
        (operator.builtinOptions, _OPTIONS.get(builtin)),
        (operator.builtinOptions2, _REQUIRED_OPTIONS_2.get(builtin, (None,))[0]),
    ):
        if expected and options is not None and not isinstance(options, expected):
            raise ValidationError(
                f"its options must be {expected.__name__[:-1]}, got"
                f" {type(options).__name__[:-1]}"
            )
    if builtin in _REQUIRED_OPTIONS_2:
        expected, name = _REQUIRED_OPTIONS_2[builtin]
        options = operator.builtinOptions2
        if options is None:
            raise ValidationError(f"its {expected.__name__[:-1]} are missing")
        _text(getattr(options, name), f"its {name}")
    if builtin == _OP.STABLEHLO_CUSTOM_CALL:
        _text(operator.builtinOptions2.backendConfig or b"", "its backendConfig")


def _check_operator(
    model: schema.ModelT, subgraph: schema.SubGraphT, operator: schema.OperatorT
) -> None:
    tensors = len(subgraph.tensors)
    for name in ("inputs", "outputs", "intermediates"):
        indices = _array(getattr(operator, name)).tolist()
        _check_indices(indices, tensors, f"its {name} refer to tensor", optional=True)
    for output in operator.outputs.tolist():
        if output >= 0 and _data_size(model, subgraph.tensors[output]):
            raise ValidationError(f"its output, tensor {output}, has constant data")
    called = edit.called_subgraphs(operator)
    _check_indices(called, len(model.subgraphs), "it refers to subgraph")
    builtin = model.operatorCodes[operator.opcodeIndex].builtinCode
    _check_options(operator, builtin)
    if builtin == _OP.STABLEHLO_COMPOSITE:
        index = operator.builtinOptions2.decompositionSubgraphIndex
        _check_indices([index], len(model.subgraphs), "it refers to subgraph")


def _check_subgraph(model: schema.ModelT, subgraph: schema.SubGraphT) -> None:
    for t, tensor in enumerate(subgraph.tensors):
        try:
            _check_indices([tensor.buffer], len(model.buffers), "refers to buffer")
            constant = edit.constant_data(model, tensor) is not None
            _check_tensor(model, tensor, constant)
        except ValidationError as error:
            raise ValidationError(f"tensor {t} ({_name(tensor)}): {error}") from None
    tensors = len(subgraph.tensors)
    inputs, outputs = subgraph.inputs.tolist(), subgraph.outputs.tolist()
    _check_indices(inputs, tensors, "has as input the tensor", optional=True)
    _check_indices(outputs, tensors, "has as output the tensor", optional=True)
    for i in inputs:
        if i >= 0 and _data_size(model, subgraph.tensors[i]):
            raise ValidationError(f"its input, tensor {i}, has constant data")
    for o, operator in enumerate(subgraph.operators):
        where = f"operator {o}"
        try:
            index = operator.opcodeIndex
            _check_indices([index], len(model.operatorCodes), "has operator code")
            builtin = model.operatorCodes[index].builtinCode
            where += f" ({_OPERATOR_NAMES.get(builtin, builtin)})"
            _check_operator(model, subgraph, operator)
        except ValidationError as error:
            raise ValidationError(f"{where}: {error}") from None


def _name(tensor: schema.TensorT) -> str:
    return repr(tensor.name.decode(errors="replace"))


def _check_buffers(model: schema.ModelT) -> None:
    # Runtimes take every tensor of buffer 0 for one without data (schema.fbs).
    if model.buffers and any(
        data is not None and len(data)
        for data in (model.buffers[0].data, model.buffers[0].external)
    ):
        raise ValidationError("buffer 0 must be empty, it has data")


def _check_signatures(model: schema.ModelT) -> None:
    for i, signature in enumerate(model.signatureDefs or ()):
        key = _text(signature.signatureKey, f"the key of signature {i}")
        index = signature.subgraphIndex
        what = f"signature {key!r} refers to"
        _check_indices([index], len(model.subgraphs), f"{what} subgraph")
        for entry in (*(signature.inputs or ()), *(signature.outputs or ())):
            _text(entry.name, f"the name of an input or output of signature {key!r}")
            tensors = len(model.subgraphs[index].tensors)
            _check_indices([entry.tensorIndex], tensors, f"{what} tensor")


def _check_metadata(model: schema.ModelT) -> None:
    for i, entry in enumerate(model.metadata or ()):
        if entry.name is None:
            raise ValidationError(f"metadata entry {i} has no name")
        what = f"metadata entry {entry.name!r} refers to buffer"
        _check_indices([entry.buffer], len(model.buffers), what)
    if model.metadataBuffer is not None:
        what = "metadata_buffer refers to buffer"
        _check_indices(model.metadataBuffer.tolist(), len(model.buffers), what)


def _check_calls(model: schema.ModelT) -> None:
    """Raises for subgraphs that call themselves, directly or through others."""
    calls = [
        sorted(set().union(*map(edit.called_subgraphs, subgraph.operators)))
        for subgraph in model.subgraphs
    ]
    finished: set[int] = set()
    for start in range(len(calls)):
        if start in finished:
            continue
        # Depth first, without recursion: the file decides how deep it goes.
        path: dict[int, Iterator[int]] = {start: iter(calls[start])}
        while path:
            current = next(reversed(path))
            called = next(path[current], None)
            if called is None:
                del path[current]
                finished.add(current)
            elif called in path:
                raise ValidationError(
                    f"subgraph {called} calls itself, through an operator of subgraph"
                    f" {current}"
                )
            elif called not in finished:
                path[called] = iter(calls[called])


def validate(model: schema.ModelT) -> None:
    """Validates a model as it was unpacked; fills in vectors that are left out.

    Raises:
      ValidationError: Something is malformed.
    """
    if model.version != _VERSION:
        raise ValidationError(f"schema version {model.version}, expected {_VERSION}")
    _fill_in(model)
    if not model.subgraphs:
        raise ValidationError("it has no subgraph")
    _check_codes(model)
    _check_buffers(model)
    for s, subgraph in enumerate(model.subgraphs):
        try:
            _check_subgraph(model, subgraph)
        except ValidationError as error:
            raise ValidationError(f"subgraph {s}, {error}") from None
    _check_signatures(model)
    _check_metadata(model)
    _check_calls(model)
