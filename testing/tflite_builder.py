"""Builds .tflite models operator by operator, for tests and benchmarks."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers
from numpy import typing as npt

from ai_edge_rms_norm.tflite import edit, flatbuffer

__all__ = ["Builder"]

_OP = schema.BuiltinOperator
_OPTIONS = schema.BuiltinOptions
_TYPES: dict[Any, int] = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): schema.TensorType.BFLOAT16,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}
_OPTION_NAMES = {
    "BATCH_MATMUL": "BatchMatMul",
    "MEAN": "Reducer",
    "SUM": "Reducer",
    "REDUCE_MAX": "Reducer",
    "MAXIMUM": "MaximumMinimum",
    "EXPAND_DIMS": "ExpandDims",
    "FULLY_CONNECTED": "FullyConnected",
}
# Of operators that the runtime does not know in version 1.
_VERSIONS = {"BROADCAST_TO": 2}


class Builder:
    """A model with one subgraph, or several, and its tensors by index."""

    def __init__(self) -> None:
        self.subgraph = self._empty(b"main")
        self.model = schema.ModelT(
            version=3,
            operatorCodes=[],
            buffers=[schema.BufferT()],
            subgraphs=[self.subgraph],
            signatureDefs=[],
        )

    @staticmethod
    def _empty(name: bytes) -> schema.SubGraphT:
        return schema.SubGraphT(
            tensors=[], inputs=[], outputs=[], operators=[], name=name
        )

    def tensor(
        self,
        shape: Sequence[int],
        dtype: npt.DTypeLike = np.float32,
        data: npt.ArrayLike | None = None,
        signature: Sequence[int] | None = None,
    ) -> int:
        """Appends a tensor; returns its index."""
        buffer = 0
        if data is not None:
            content = np.frombuffer(np.asarray(data, dtype).tobytes(), np.uint8)
            buffer = edit.append_buffer(self.model, content)
        self.subgraph.tensors.append(
            schema.TensorT(
                shape=list(shape),
                shapeSignature=None if signature is None else list(signature),
                type=_TYPES[np.dtype(dtype)],
                buffer=buffer,
                name=f"t{len(self.subgraph.tensors)}".encode(),
            )
        )
        return len(self.subgraph.tensors) - 1

    def like(self, tensor: schema.TensorT) -> int:
        """Appends a tensor of the shape and type of another one."""
        self.subgraph.tensors.append(
            schema.TensorT(
                shape=tensor.shape,
                shapeSignature=tensor.shapeSignature,
                type=tensor.type,
                name=f"t{len(self.subgraph.tensors)}".encode(),
            )
        )
        return len(self.subgraph.tensors) - 1

    def constant(self, data: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> int:
        """Appends a constant."""
        return self.tensor(np.shape(data), dtype, data)

    def input(
        self,
        shape: Sequence[int],
        dtype: npt.DTypeLike = np.float32,
        signature: Sequence[int] | None = None,
    ) -> int:
        """Appends an input of the subgraph."""
        index = self.tensor(shape, dtype, signature=signature)
        self.subgraph.inputs.append(index)
        return index

    @contextlib.contextmanager
    def branch(self, name: bytes) -> Iterator[int]:
        """Writes to a new subgraph meanwhile; yields its index."""
        outer = self.subgraph
        self.subgraph = self._empty(name)
        self.model.subgraphs.append(self.subgraph)
        yield len(self.model.subgraphs) - 1
        self.subgraph = outer

    def shape(self, tensor: int) -> list[int]:
        """Returns the shape of a tensor."""
        return list(self.subgraph.tensors[tensor].shape)

    def signature(self, tensor: int) -> list[int]:
        """Returns the shape of a tensor, with -1 for dynamic dimensions."""
        signature = self.subgraph.tensors[tensor].shapeSignature
        return self.shape(tensor) if signature is None else list(signature)

    def _broadcast(self, tensors: Sequence[int]) -> tuple[list[int], list[int]]:
        """Returns the shape and the signature of an elementwise result."""
        shape = list(np.broadcast_shapes(*(self.shape(i) for i in tensors)))
        signature = list(shape)
        for i in tensors:
            for d, size in enumerate(reversed(self.signature(i)), 1):
                if size == -1:
                    signature[-d] = -1
        return shape, signature

    def __call__(
        self,
        name: str,
        *inputs: int,
        shape: Sequence[int] | None = None,
        signature: Sequence[int] | None = None,
        dtype: npt.DTypeLike | None = None,
        activation: int = 0,
        **fields: Any,
    ) -> int:
        """Appends the operator `name`; returns its output.

        The output has the broadcast shape of the inputs and the type of the first one,
        unless given; `fields` are those of the operator's options.
        """
        option_name = _OPTION_NAMES.get(name, name.capitalize())
        options: Any = None
        options_type = 0
        if hasattr(_OPTIONS, f"{option_name}Options"):
            options_type = getattr(_OPTIONS, f"{option_name}Options")
            options = getattr(schema, f"{option_name}OptionsT")()
            vars(options).update(fields)
        if activation:
            options.fusedActivationFunction = activation
        if shape is None:
            shape, signature = self._broadcast([i for i in inputs if i >= 0])
        if option_name == "Reducer" and "keepDims" not in fields:
            options.keepDims = len(shape) == len(self.shape(inputs[0]))
        if dtype is None:
            first = self.subgraph.tensors[inputs[0]].type
            dtype = {value: key for key, value in _TYPES.items()}[first]
        if signature is not None and list(signature) == list(shape):
            signature = None
        output = self.tensor(shape, np.dtype(dtype), signature=signature)
        code = edit.intern_operator_code(
            self.model, getattr(_OP, name), version=_VERSIONS.get(name, 1)
        )
        self._operator(
            code,
            inputs,
            [output],
            builtinOptions=options,
            builtinOptionsType=options_type,
        )
        return output

    def _operator(
        self, code: int, inputs: Sequence[int], outputs: Sequence[int], **fields: Any
    ) -> None:
        self.subgraph.operators.append(
            schema.OperatorT(
                opcodeIndex=code, inputs=list(inputs), outputs=list(outputs), **fields
            )
        )

    def reduce(
        self,
        name: str,
        x: int,
        axis: int | Sequence[int] = -1,
        keep_dims: bool = True,
        **kwargs: Any,
    ) -> int:
        """Appends MEAN, SUM or REDUCE_MAX."""
        axes = [axis] if isinstance(axis, int) else list(axis)
        rank = len(self.shape(x))
        reduced = {a % rank for a in axes}

        def result(sizes: list[int]) -> list[int]:
            kept = [1 if d in reduced else n for d, n in enumerate(sizes)]
            if keep_dims:
                return kept
            return [n for d, n in enumerate(sizes) if d not in reduced]

        return self(
            name,
            x,
            self.constant(axes, np.int32),
            shape=result(self.shape(x)),
            signature=result(self.signature(x)),
            keepDims=keep_dims,
            **kwargs,
        )

    def reshape(self, x: int, shape: Sequence[int], name: str = "RESHAPE") -> int:
        """Appends RESHAPE, or another operator that is given a shape."""
        return self(name, x, self.constant(list(shape), np.int32), shape=shape)

    def custom(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Mapping[str, Any] | bytes | None,
    ) -> None:
        """Appends a custom operator."""
        code = edit.intern_operator_code(self.model, _OP.CUSTOM, name)
        data = None if options is None else _flexbuffer(options)
        self._operator(code, inputs, outputs, customOptions=data)

    def composite(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        subgraph: int,
        epsilon: float = 1e-3,
        attributes: Mapping[str, Any] | bytes | None = None,
    ) -> None:
        """Appends the composite odml.rms_norm with that decomposition.

        `attributes` are the ones that it has instead of the epsilon.
        """
        if attributes is None:
            attributes = {"epsilon": epsilon}
        code = edit.intern_operator_code(self.model, _OP.STABLEHLO_COMPOSITE)
        options_type = schema.BuiltinOptions2.StableHLOCompositeOptions
        options = schema.StableHLOCompositeOptionsT(
            name=b"odml.rms_norm",
            decompositionSubgraphIndex=subgraph,
            compositeAttributes=_flexbuffer(attributes),
        )
        self._operator(
            code,
            inputs,
            outputs,
            builtinOptions2Type=options_type,
            builtinOptions2=options,
        )

    def serve(
        self,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        name: str = "serving_default",
    ) -> None:
        """Appends a signature of the subgraph."""

        def maps(tensors: Mapping[str, int]) -> list[schema.TensorMapT]:
            return [schema.TensorMapT(key.encode(), i) for key, i in tensors.items()]

        self.model.signatureDefs.append(
            schema.SignatureDefT(
                inputs=maps(inputs),
                outputs=maps(outputs),
                signatureKey=name.encode(),
                subgraphIndex=self.model.subgraphs.index(self.subgraph),
            )
        )

    def content(self, *outputs: int) -> bytes:
        """Returns the model with these outputs of the subgraph."""
        self.subgraph.outputs = list(outputs)
        return flatbuffer.to_bytes(self.model)


def _flexbuffer(value: Mapping[str, Any] | bytes) -> npt.NDArray[np.uint8]:
    """Returns a map as a FlexBuffer; bytes are one, or what a test puts there."""
    data = flexbuffers.Dumps(value) if isinstance(value, Mapping) else value
    return np.frombuffer(bytes(data), np.uint8)
