"""An FX graph of ATen operators as the grammar of RMSNorm sees it (`pattern.Graph`).

    program = torch.export.export(module, (x,)).run_decompositions()
    matches, refusals = find_norms(program.graph, constants(program))

A match names nodes: x, the weights (of shape [n], placeholders or computed), y, and
all nodes in between. A module whose forward is one RMSNorm has one match, whose y is
the output, and no other call_function node than match.ops and casts of x.
"""

import numbers
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch.fx import Node

from ai_edge_rms_norm import pattern

__all__ = ["FLOAT_DTYPES", "Graph", "constants", "find_norms", "value_of"]

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_ATEN = torch.ops.aten
# Export puts them beside a cast, or they read a shape only; they compute nothing.
_SHAPE_READERS = (
    _ATEN._assert_tensor_metadata.default,
    _ATEN.sym_size.int,
)
_SCALAR_TENSOR = _ATEN.scalar_tensor.default
_FULL = (_ATEN.full.default, _ATEN.full_like.default, _SCALAR_TENSOR)
_KINDS: dict[Any, str] = {
    _ATEN._to_copy.default: "cast",
    _ATEN._unsafe_view.default: "reshape",
    _ATEN.abs.default: "abs",
    _ATEN.alias.default: "alias",
    _ATEN.clone.default: "alias",
    _ATEN.contiguous.default: "alias",
    _ATEN.detach.default: "alias",
    _ATEN.expand.default: "expand",
    _ATEN.lift_fresh_copy.default: "alias",
    _ATEN.reciprocal.default: "reciprocal",
    _ATEN.reshape.default: "reshape",
    _ATEN.rsqrt.default: "rsqrt",
    _ATEN.sqrt.default: "sqrt",
    _ATEN.square.default: "square",
    _ATEN.squeeze.dim: "reshape",
    _ATEN.squeeze.dims: "reshape",
    _ATEN.to.dtype: "cast",
    _ATEN.unsqueeze.default: "reshape",
    _ATEN.view.default: "reshape",
}
_BINARY: dict[Any, str] = {
    _ATEN.add.Scalar: "add",
    _ATEN.add.Tensor: "add",
    _ATEN.clamp_min.Tensor: "maximum",
    _ATEN.clamp_min.default: "maximum",
    _ATEN.div.Scalar: "div",
    _ATEN.div.Tensor: "div",
    _ATEN.maximum.default: "maximum",
    _ATEN.mul.Scalar: "mul",
    _ATEN.mul.Tensor: "mul",
    _ATEN.pow.Tensor_Scalar: "pow",
    _ATEN.pow.Tensor_Tensor: "pow",
    _ATEN.sub.Scalar: "sub",
    _ATEN.sub.Tensor: "sub",
}
_REDUCTIONS: dict[Any, str] = {
    _ATEN.amax.default: "max",
    _ATEN.mean.dim: "mean",
    _ATEN.sum.dim_IntList: "sum",
}
_POWERS = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}


def value_of(node: Any) -> torch.Tensor | None:
    """Returns the fake tensor that a node computes; None if it computes none."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, torch.Tensor) else None


def constants(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    """Returns the constants of a program by the names of their placeholders.

    These are lifted tensors and buffers that are never written; parameters, which may
    be weights, are none.
    """
    signature = program.graph_signature
    values = {**program.state_dict, **program.constants}
    written = set(signature.buffers_to_mutate.values())
    names = {
        **signature.inputs_to_lifted_tensor_constants,
        **{
            placeholder: buffer
            for placeholder, buffer in signature.inputs_to_buffers.items()
            if buffer not in written
        },
    }
    return {
        placeholder: values[name]
        for placeholder, name in names.items()
        if isinstance(values.get(name), torch.Tensor)
    }


class Graph:
    """A `torch.fx.Graph` of ATen operators.

    Operators and tensors are nodes; a number is a tensor, too.

    Args:
      graph: The graph; its nodes have fake tensors in meta["val"].
      constants: Values by the name of a placeholder, or the target of a get_attr.
      excluded: Nodes that the grammar does not look at.
    """

    max_weights = 1 << 30

    def __init__(
        self,
        graph: torch.fx.Graph,
        constants: Mapping[str, torch.Tensor] | None = None,
        excluded: Collection[Node] = (),
    ) -> None:
        self._graph = graph
        self._constants = constants or {}
        self._excluded = frozenset(excluded)
        self._scalars: dict[Node, float] = {}
        self._stored: set[Node] = set()
        for node in graph.nodes:
            self._fold(node)

    def _fold(self, node: Node) -> None:
        """Notes the number that every element of a tensor is, if it is one."""
        target: Any = node.target
        if node.op in ("placeholder", "get_attr"):
            self._fold_constant(node, node.name if node.op[0] == "p" else str(target))
        elif target in _FULL:
            value = node.args[0 if target == _SCALAR_TENSOR else 1]
            if isinstance(value, numbers.Real) and self._is_float(node):
                self._scalars[node] = float(value)
        elif _KINDS.get(target) in ("alias", "cast", "expand", "reshape"):
            self._fold_copy(node, node.args[0])

    def _fold_constant(self, node: Node, name: str) -> None:
        value = self._constants.get(name)
        if (
            value is not None
            and value.numel() == 1
            and value.is_floating_point()
            and value.device.type != "meta"
        ):
            self._scalars[node] = float(value.detach())
            self._stored.add(node)

    def _fold_copy(self, node: Node, before: Any) -> None:
        if before not in self._scalars or not self._is_float(node):
            return
        value = self._scalars[before]
        if self.dtype(node) != self.dtype(before):
            value = float(torch.tensor(value, dtype=self.dtype(node)))
        self._scalars[node] = value
        if before in self._stored:
            self._stored.add(node)

    @staticmethod
    def _is_float(node: Any) -> bool:
        value = value_of(node)
        return value is not None and value.dtype in FLOAT_DTYPES

    # pattern.Graph

    def ops(self) -> Iterable[Node]:
        return (
            node
            for node in self._graph.nodes
            if node.op == "call_function"
            and node not in self._excluded
            and value_of(node) is not None
        )

    def canonical(self, op: Node) -> tuple[Any, ...] | None:
        target: Any = op.target
        args: tuple[Any, ...] = op.args
        if target in _KINDS:
            return self._unary(op, _KINDS[target], args[0])
        if target in _BINARY:
            if op.kwargs or len(args) != 2:  # add(a, b, alpha=2) is a + 2 b.
                return None
            return self._binary(_BINARY[target], *args)
        if target in _REDUCTIONS:
            return _REDUCTIONS[target], args[0], self._axes(args[0], args[1:2])
        other = self._OTHERS.get(target)
        return other(self, *args) if other is not None else None

    def _clamp(
        self, a: Node, low: Any = None, high: Any = None
    ) -> tuple[Any, ...] | None:
        is_maximum = low is not None and high is None
        return ("maximum", a, low) if is_maximum else None

    def _vector_norm(
        self, a: Node, power: Any = 2, dims: Any = None, *_: Any
    ) -> tuple[Any, ...] | None:
        return ("norm", a, self._axes(a, (dims,))) if power == 2 else None

    def _permute(self, a: Node, dims: Sequence[int]) -> tuple[Any, ...] | None:
        is_same = list(dims) == list(range(len(self.shape(a))))
        return ("alias", a) if is_same else None

    def _slice(
        self, a: Node, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1
    ) -> tuple[Any, ...] | None:
        """A slice of everything, which indexing with `:` leaves in some graphs."""
        is_all = not start and step == 1 and end in (None, sys.maxsize)
        return ("alias", a) if is_all else None

    def _unary(self, op: Node, kind: str, a: Node) -> tuple[Any, ...] | None:
        if kind == "cast":
            if self.dtype(op) == self.dtype(a):
                return "alias", a
            if not (self._is_float(a) and self._is_float(op)):
                return None
        return kind, a

    def _binary(self, kind: str, a: Any, b: Any) -> tuple[Any, ...] | None:
        left, right = self.scalar(a), self.scalar(b)
        if kind == "pow":
            power = None if right is None else _POWERS.get(right)
            return None if power is None else (power, a)
        if kind == "sub":
            if right is None:
                return None
            return ("add", a, -right) if right else ("alias", a)
        if kind == "mul" and (left is None) != (right is None):
            return ("scale", a, right) if left is None else ("scale", b, left)
        if kind == "div" and right:
            return "scale", a, 1 / right
        if kind == "div" and left == 1:
            return "reciprocal", b
        return kind, a, b

    def _axes(self, a: Node, argument: tuple[Any, ...]) -> list[int] | None:
        """Returns the axes of a reduction; none given, or an empty list, are all."""
        rank = len(self.shape(a))
        dims = argument[0] if argument else None
        if isinstance(dims, int):
            dims = [dims]
        return sorted({d % rank for d in dims}) if dims and rank else list(range(rank))

    def _dot(self, a: Node, b: Node) -> tuple[Any, ...] | None:
        """An einsum of x with itself over the last axis, after its decomposition."""
        x, other = self._unviewed(a), self._unviewed(b)
        size = self.shape(x)[-1:]
        is_dot = (
            x is other
            and isinstance(next(iter(size), None), int)
            and self.shape(a)[1:] == [1, *size]
            and self.shape(b)[1:] == [*size, 1]
        )
        return ("dot", x) if is_dot else None

    def _einsum(
        self, equation: str, operands: Sequence[Node], *_: Any
    ) -> tuple[Any, ...] | None:
        """The same before its decomposition: `btd,btd->bt`, `...d,...d->...`."""
        left, __, result = equation.replace(" ", "").partition("->")
        terms = left.split(",")
        is_dot = (
            len(terms) == len(operands) == 2
            and operands[0] is operands[1]
            and terms[0] == terms[1] == result + terms[0][-1:]
            and terms[0][-1:].isalpha()
            and all(terms[0].count(letter) == 1 for letter in terms[0] if letter != ".")
        )
        return ("dot", operands[0]) if is_dot else None

    _OTHERS: ClassVar[dict[Any, Callable[..., tuple[Any, ...] | None]]] = {
        _ATEN.bmm.default: _dot,
        _ATEN.clamp.Tensor: _clamp,
        _ATEN.clamp.default: _clamp,
        _ATEN.einsum.default: _einsum,
        _ATEN.linalg_vector_norm.default: _vector_norm,
        _ATEN.permute.default: _permute,
        _ATEN.slice.Tensor: _slice,
    }

    def _unviewed(self, node: Node) -> Node:
        """Returns what a node is before views and permutations that move nothing."""
        for _ in range(8):
            canonical = self.canonical(node) if node.op == "call_function" else None
            kind, before = canonical[:2] if canonical else ("", node)
            is_same = kind == "expand" and self.shape(before) == self.shape(node)
            if kind not in ("alias", "reshape") and not is_same:
                break
            node = before
        return node

    def output(self, op: Node) -> Node:
        return op

    def shape(self, tensor: Any) -> list[Any]:
        """Returns sizes; symbols as text, since to compare them constrains them."""
        value = value_of(tensor)
        if value is None:
            return []
        return [n if isinstance(n, int) else str(n) for n in value.shape]

    def dtype(self, tensor: Any) -> torch.dtype | None:
        value = value_of(tensor)
        return None if value is None else value.dtype

    def widens(self, before: Any, after: Any) -> bool:
        return self.dtype(after) in (self.dtype(before), torch.float32)

    def scalar(self, tensor: Any) -> float | None:
        if isinstance(tensor, numbers.Real):
            return float(tensor)
        return self._scalars.get(tensor)

    def epsilon(self, tensor: Any) -> float:
        value = self.scalar(tensor)
        assert value is not None
        # The shortest decimal: 1e-06 for the float32 that is next to it.
        return float(str(np.float32(value))) if tensor in self._stored else value

    def epsilon_of_root(self, tensor: Any) -> float:
        value = self.scalar(tensor)
        assert value is not None
        return pattern.epsilon_of_root(value)

    def is_weight(self, tensor: Any, hidden_size: int) -> bool:
        value = value_of(tensor)
        is_float = value is not None and value.dtype.is_floating_point
        return is_float and self.shape(tensor) == [hidden_size]

    def why_not_x(self, tensor: Any) -> str | None:
        if self._is_float(tensor):
            return None
        return f"x, {self.describe_tensor(tensor)}, is {self.dtype(tensor)}"

    def users(self, tensor: Any) -> list[Node]:
        return [
            user
            for user in tensor.users
            if user.op != "output"
            and user.target not in _SHAPE_READERS
            and user.target not in _FULL
        ]

    def is_output(self, tensor: Any) -> bool:
        return any(user.op == "output" for user in tensor.users)

    def describe_op(self, op: Node) -> str:
        return f"{op.name} ({op.target})"

    def describe_tensor(self, tensor: Any) -> str:
        return repr(tensor.name) if isinstance(tensor, Node) else repr(tensor)


def find_norms(
    graph: torch.fx.Graph,
    constants: Mapping[str, torch.Tensor] | None = None,
    excluded: Collection[Node] = (),
) -> tuple[list[pattern.Match[Node]], list[pattern.Refusal[Node]]]:
    """Finds every RMSNorm over the last dimension in a graph of ATen operators.

    Args:
      graph: The graph, decomposed to core ATen; its nodes have fake tensors in
        meta["val"].
      constants: Values by the name of a placeholder, or the target of a get_attr, that
        may hold epsilon; those of an exported program are `constants(program)`.
      excluded: Nodes that are not looked at.

    Returns:
      The norms, and the root mean squares that are not part of one, with the reason.
      Weights are the factors of shape [n], any number of them, in execution order.
    """
    return pattern.find(Graph(graph, constants, excluded))
