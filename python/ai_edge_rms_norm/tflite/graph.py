"""A subgraph of a .tflite as the grammar of RMSNorm sees it (`pattern.Graph`)."""

import collections
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm import pattern
from ai_edge_rms_norm.tflite import edit

__all__ = ["OPERATOR_NAMES", "Graph", "shape_of", "type_name"]

_OP = schema.BuiltinOperator
_TYPE = schema.TensorType
OPERATOR_NAMES = {v: k for k, v in vars(_OP).items() if k.isupper()}
_TYPE_NAMES: dict[int, str] = {
    v: k.lower() for k, v in vars(_TYPE).items() if k.isupper()
}
_HALF_TYPES = (_TYPE.FLOAT16, _TYPE.BFLOAT16)
_FLOAT_TYPES = (_TYPE.FLOAT32, *_HALF_TYPES)
# Bytes of an element, of the types of constants that are read.
_SIZES = {_TYPE.FLOAT32: 4, _TYPE.INT32: 4, **dict.fromkeys(_HALF_TYPES, 2)}

# Kind by operator, for those with one operand that counts.
_UNARY = {
    _OP.ABS: "abs",
    _OP.BROADCAST_TO: "expand",
    _OP.CAST: "cast",
    _OP.DEQUANTIZE: "cast",
    _OP.EXPAND_DIMS: "reshape",
    _OP.RESHAPE: "reshape",
    _OP.RSQRT: "rsqrt",
    _OP.SQRT: "sqrt",
    _OP.SQUARE: "square",
    _OP.SQUEEZE: "reshape",
}
_BINARY = {
    _OP.ADD: "add",
    _OP.DIV: "div",
    _OP.MAXIMUM: "maximum",
    _OP.MUL: "mul",
    _OP.POW: "pow",
}
_REDUCTIONS = {_OP.MEAN: "mean", _OP.REDUCE_MAX: "max", _OP.SUM: "sum"}
_POWERS = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
_NUM_INPUTS = {
    **dict.fromkeys(_UNARY, 1),
    **dict.fromkeys(_BINARY, 2),
    **dict.fromkeys(_REDUCTIONS, 2),
    _OP.BATCH_MATMUL: 2,
}


def shape_of(tensor: schema.TensorT) -> list[int]:
    """Returns the shape, with -1 for what is known at run time only."""
    shape = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    return [] if shape is None else [int(size) for size in shape]


def type_name(tensor_type: int) -> str:
    """Returns the name of a type, like `float32`."""
    return _TYPE_NAMES.get(tensor_type, f"type {tensor_type}")


def _indices(vector: Iterable[int] | None) -> list[int]:
    return [] if vector is None else [int(i) for i in vector]


class Graph:
    """One subgraph with who produces and who uses each tensor.

    Operators and tensors are their indices.

    Args:
      model: The object tree of a .tflite.
      index: Index of the subgraph.
      outputs: Further tensors that are needed outside, those of signatures.

    Raises:
      ValueError: An operator of an RMSNorm has not the operands that it needs.
    """

    max_weights = 1

    def __init__(
        self, model: schema.ModelT, index: int, outputs: Iterable[int] = ()
    ) -> None:
        subgraph = model.subgraphs[index]
        self._model = model
        self._tensors = subgraph.tensors
        self.operators = list(subgraph.operators)
        self.interface = _indices(subgraph.inputs), _indices(subgraph.outputs)
        self._builtins: list[int] = [
            model.operatorCodes[operator.opcodeIndex].builtinCode
            for operator in self.operators
        ]
        self._inputs = [_indices(operator.inputs) for operator in self.operators]
        self._outputs = [_indices(operator.outputs) for operator in self.operators]
        # Tensors that two operators write.
        self._ambiguous: set[int] = set()
        self._needed = {int(i) for i in (*subgraph.outputs, *outputs)}
        self._users: dict[int, list[int]] = collections.defaultdict(list)
        self._producers: dict[int, int | None] = {int(i): None for i in subgraph.inputs}
        # The constant that a tensor is, widened, dequantized or reshaped.
        self._stored: dict[int, int] = {}
        self._shapes: dict[int, list[int]] = {}
        for o in range(len(self.operators)):
            self._check_operands(o)
            for i in dict.fromkeys(self._inputs[o]):
                self._users[i].append(o)
            for i in self._outputs[o]:
                if i in self._producers:
                    self._ambiguous.add(i)
                self._producers[i] = o
            if _UNARY.get(self._builtins[o]) in ("cast", "expand", "reshape"):
                before, after = self._inputs[o][0], self.output(o)
                if self.widens(before, after) and self.is_constant(before):
                    self._stored[after] = self.stored(before)

    def _check_operands(self, op: int) -> None:
        expected = _NUM_INPUTS.get(self._builtins[op])
        inputs = self._inputs[op]
        if expected and (
            sum(i >= 0 for i in inputs[:expected]) < expected or self.output(op) < 0
        ):
            raise ValueError(
                f"operator {op}, {OPERATOR_NAMES[self._builtins[op]]}, must have an"
                f" output and inputs from 0 to {expected - 1}, its inputs are {inputs}"
                f" and its output {self.output(op)}"
            )

    # For the editing of a subgraph.

    def builtin(self, op: int) -> int:
        return self._builtins[op]

    def inputs(self, op: int) -> list[int]:
        return self._inputs[op]

    def outputs(self, op: int) -> list[int]:
        return self._outputs[op]

    def producer(self, tensor: int) -> int | None:
        return self._producers.get(tensor)

    def tensor(self, tensor: int) -> schema.TensorT:
        return self._tensors[tensor]

    def name(self, tensor: int) -> str:
        return edit.text(self._tensors[tensor].name)

    def is_constant(self, tensor: int) -> bool:
        """Whether a tensor is a constant, or one that is widened or reshaped."""
        stored = self._tensors[self.stored(tensor)]
        return edit.constant_data(self._model, stored) is not None

    def stored(self, tensor: int) -> int:
        """Returns the constant that a tensor is, widened or reshaped, else itself."""
        return self._stored.get(tensor, tensor)

    # pattern.Graph

    def ops(self) -> Iterable[int]:
        return range(len(self.operators))

    def canonical(self, op: int) -> tuple[Any, ...] | None:
        builtin = self._builtins[op]
        options: Any = self.operators[op].builtinOptions
        if (
            builtin not in _NUM_INPUTS
            or getattr(options, "fusedActivationFunction", 0) != 0
            or not self._is_plain(op)
            or not self._has_computed_type(op)
        ):
            return None
        inputs = self._inputs[op]
        if builtin == _OP.BATCH_MATMUL:
            return self._dot(options, *inputs[:2])
        if builtin in _REDUCTIONS:
            axes = self._axes(inputs[1], len(self.shape(inputs[0])))
            return _REDUCTIONS[builtin], inputs[0], axes
        if builtin in _BINARY:
            return self._binary(_BINARY[builtin], *inputs[:2])
        return self._unary(op, _UNARY[builtin], inputs[0])

    def _is_plain(self, op: int) -> bool:
        """Whether an operator computes one tensor, from what is there before it."""
        if len(self._outputs[op]) != 1 or self._has_data(self._outputs[op][0]):
            return False
        operands = (*self._inputs[op], *self._outputs[op])
        return self._ambiguous.isdisjoint(operands) and all(
            (self.producer(i) or 0) < op or self.producer(i) is None
            for i in self._inputs[op]
        )

    def _has_computed_type(self, op: int) -> bool:
        """Whether the file states the type that an operator computes."""
        builtin, dtype = self._builtins[op], self.dtype(self.output(op))
        if builtin == _OP.CAST:
            return True
        if builtin == _OP.DEQUANTIZE:
            return bool(dtype == _TYPE.FLOAT32)
        is_unary = builtin in _UNARY or builtin in _REDUCTIONS
        # A norm of integers is refused elsewhere, with its own reason.
        is_single = is_unary or dtype not in _FLOAT_TYPES
        operands = self._inputs[op][: 1 if is_single else 2]
        return all(self.dtype(i) == dtype for i in operands)

    def _elements(self, tensor: int) -> np.ndarray | None:
        """Returns the data of a dense constant; None if it is not that of its shape."""
        stored = self._tensors[tensor]
        data = edit.constant_data(self._model, stored)
        if data is None or stored.type not in _SIZES or stored.sparsity is not None:
            return None
        shape = [] if stored.shape is None else [int(size) for size in stored.shape]
        return data if len(data) == _SIZES[stored.type] * math.prod(shape) else None

    def _has_data(self, tensor: int) -> bool:
        return edit.constant_data(self._model, self._tensors[tensor]) is not None

    def _unary(self, op: int, kind: str, a: int) -> tuple[Any, ...] | None:
        y = self.output(op)
        if kind == "cast" and not {self.dtype(a), self.dtype(y)} <= set(_FLOAT_TYPES):
            return None
        is_ambiguous = self.shape(y).count(-1) > 1
        # A shape with two unknown sizes does not say which rows go where.
        if self._builtins[op] == _OP.RESHAPE and is_ambiguous:
            return None
        return kind, a

    def _binary(self, kind: str, a: int, b: int) -> tuple[Any, ...] | None:
        left, right = self.scalar(a), self.scalar(b)
        if kind == "pow":
            power = None if right is None else _POWERS.get(right)
            return None if power is None else (power, a)
        if kind == "mul" and (left is None) != (right is None):
            return ("scale", a, right) if left is None else ("scale", b, left)
        if kind == "div" and right:
            return "scale", a, 1 / right
        if kind == "div" and left == 1:
            return "reciprocal", b
        return kind, a, b

    def _dot(self, options: Any, a: int, b: int) -> tuple[Any, ...] | None:
        """A product of each row of x, as a matrix of one row, with itself."""
        if len(self.shape(a)) < 2 or len(self.shape(b)) < 2:
            return None
        (*rows, m, n), (*others, p, q) = self.shape(a), self.shape(b)
        if getattr(options, "adjX", False):
            m, n = n, m
        if getattr(options, "adjY", False):
            p, q = q, p
        if m != 1 or q != 1 or n != p or rows != others:
            return None
        same = [x for x in self._with_rows(a, n) if x in self._with_rows(b, n)]
        return ("dot", same[-1]) if same else None

    def _with_rows(self, tensor: int, size: int) -> list[int]:
        """Returns a tensor, and what it was reshaped from, as far as they have rows."""
        found = [tensor]
        op = self.producer(tensor)
        if op is not None and _UNARY.get(self._builtins[op]) == "reshape":
            canonical = self.canonical(op)
            found += canonical[1:] if canonical else ()
        return [i for i in found if self.shape(i)[-1:] == [size]]

    def _axes(self, tensor: int, rank: int) -> list[int] | None:
        data = self._elements(tensor)
        if data is None or self.dtype(tensor) != _TYPE.INT32:
            return None
        axes = np.frombuffer(bytes(data), np.int32).tolist()
        if not all(-rank <= axis < rank for axis in axes):
            return None
        return sorted({axis % rank for axis in axes})

    def output(self, op: int) -> int:
        """Returns the first output; -1 if there is none."""
        return self._outputs[op][0] if self._outputs[op] else -1

    def shape(self, tensor: int) -> list[int]:
        if tensor not in self._shapes:
            self._shapes[tensor] = shape_of(self._tensors[tensor])
        return self._shapes[tensor]

    def dtype(self, tensor: int) -> int:
        return int(self._tensors[tensor].type)

    def widens(self, before: int, after: int) -> bool:
        old, new = self.dtype(before), self.dtype(after)
        return old == new or (old in _HALF_TYPES and new == _TYPE.FLOAT32)

    def scalar(self, tensor: int) -> float | None:
        stored = self.stored(tensor)
        dtype, data = self.dtype(stored), self._elements(stored)
        if dtype not in _FLOAT_TYPES or data is None or len(data) != _SIZES[dtype]:
            return None
        content = bytes(data)
        if dtype == _TYPE.BFLOAT16:  # The upper half of a float32.
            return float(np.frombuffer(b"\0\0" + content, np.float32)[0])
        half = dtype == _TYPE.FLOAT16
        return float(np.frombuffer(content, np.float16 if half else np.float32)[0])

    def epsilon(self, tensor: int) -> float:
        value = self.scalar(tensor)
        assert value is not None
        # The exact one in the name, else the shortest decimal: 1e-06 for the float32
        # that is next to it.
        named = pattern.epsilon_in_name(self.name(self.stored(tensor)))
        if named is not None and np.float32(named) == np.float32(value):
            return named
        return float(str(np.float32(value)))

    def epsilon_of_root(self, tensor: int) -> float:
        value = self.scalar(tensor)
        assert value is not None
        return pattern.epsilon_of_root(value, self.name(self.stored(tensor)))

    def is_weight(self, tensor: int, hidden_size: int) -> bool:
        *leading, last = self.shape(tensor) or [0]
        if (
            last != hidden_size
            or any(size != 1 for size in leading)
            or self.dtype(tensor) not in _FLOAT_TYPES
            or self._tensors[tensor].sparsity is not None
        ):
            return False
        if self.is_constant(tensor) and self._elements(self.stored(tensor)) is None:
            return False
        # A computed tensor cannot be given another rank, but a constant can.
        return not leading or self.can_be_flattened(tensor)

    def can_be_flattened(self, tensor: int) -> bool:
        """Whether a weight is a constant, or a dequantized one."""
        op = self.producer(tensor)
        if op is not None and self._builtins[op] == _OP.DEQUANTIZE:
            tensor = self._inputs[op][0]
        return self._has_data(tensor) and self.producer(tensor) is None

    def why_not_x(self, tensor: int) -> str | None:
        name = self.describe_tensor(tensor)
        if self.dtype(tensor) not in _FLOAT_TYPES:
            return f"x, {name}, is {type_name(self.dtype(tensor))}"
        if self._tensors[tensor].isVariable:
            return f"x, {name}, is a variable"
        if tensor in self._ambiguous:
            return f"x, {name}, is written by several operators"
        return None

    def users(self, tensor: int) -> list[int]:
        return self._users.get(tensor, [])

    def is_output(self, tensor: int) -> bool:
        return tensor in self._needed

    def describe_op(self, op: int) -> str:
        return f"operator {op} ({OPERATOR_NAMES.get(self._builtins[op], '?')})"

    def describe_tensor(self, tensor: int) -> str:
        return repr(self.name(tensor))
