"""RMSNorm in decomposed form: one grammar for every kind of graph.

A sweep over the operators in execution order gives each tensor its meaning, if any:

    square(x), mul(x, x)                     SQUARE, also square(abs(x))
    sum(SQUARE) over the last axis           SUM_SQUARE, also square(ROOT_SUM_SQUARE)
    dot(x)                                   SUM_SQUARE
    sqrt(SUM_SQUARE)                         ROOT_SUM_SQUARE
    mean(SQUARE), SUM_SQUARE * 1/n           MEAN_SQUARE
    add(MEAN_SQUARE, epsilon)                SHIFTED
    sqrt(SHIFTED)                            RMS
    reciprocal(SHIFTED)                      INVERSE_SHIFTED
    rsqrt(SHIFTED), reciprocal(RMS)          INVERSE_RMS, also sqrt(INVERSE_SHIFTED)
    div(x, RMS), mul(x, INVERSE_RMS)         NORM
    mul(x, weight)                           may stand for x above
    mul(weight, INVERSE_RMS or NORM)         the same, with the weight
    cast(any), reshape(row statistic)        the same

and for the range-safe form, with c = sqrt(epsilon):

    abs(x)                                   ABS
    max(ABS) over the last axis              MAX_ABS
    maximum(MAX_ABS, c)                      ROW_SCALE
    reciprocal(ROW_SCALE)                    INVERSE_ROW_SCALE
    div(x, ROW_SCALE)                        RANGE_SCALED_X, z, which has a square ...
    div(c, ROW_SCALE)                        SCALED_ROOT
    square(SCALED_ROOT)                      SCALED_SHIFT
    add(MEAN_SQUARE of z, SCALED_SHIFT)      SHIFTED

and, to refuse what is often called RMSNorm but is not, with the reason:

    sqrt(MEAN_SQUARE)                        BARE_RMS, also ROOT_SUM_SQUARE / sqrt(n)
    div(x, ROOT_SUM_SQUARE)                  UNIT_X, whose product with sqrt(n) it is

A graph adapter translates its operators into these kinds; see `Graph`.
"""

import dataclasses
import enum
import math
import re
import struct
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

__all__ = [
    "Graph",
    "Match",
    "Refusal",
    "epsilon_in_name",
    "epsilon_of_root",
    "find",
]

Op = TypeVar("Op", bound=Hashable)
# Any, since operands are also numbers in some graphs.
Tensor = Any
# Of a tensor: integers, and something else, that compares, for what is not static.
Shape = list[Any]

# No spelling of RMSNorm has as many; it bounds the time for graphs made to take long.
_MAX_OPS = 64
_MAX_VERSIONS = 8


class Role(enum.Enum):
    """The meaning of a tensor for an RMSNorm; the module's docstring lists them."""

    SQUARE = enum.auto()
    SUM_SQUARE = enum.auto()
    ROOT_SUM_SQUARE = enum.auto()
    MEAN_SQUARE = enum.auto()
    SHIFTED = enum.auto()
    INVERSE_SHIFTED = enum.auto()
    BARE_RMS = enum.auto()
    UNIT_X = enum.auto()
    RMS = enum.auto()
    INVERSE_RMS = enum.auto()
    NORM = enum.auto()
    ABS = enum.auto()
    MAX_ABS = enum.auto()
    ROW_SCALE = enum.auto()
    INVERSE_ROW_SCALE = enum.auto()
    RANGE_SCALED_X = enum.auto()
    SCALED_ROOT = enum.auto()
    SCALED_SHIFT = enum.auto()


# As large as x; all other roles are of one number per row.
_ROLES_OF_ELEMENTS = (
    Role.SQUARE,
    Role.UNIT_X,
    Role.NORM,
    Role.ABS,
    Role.RANGE_SCALED_X,
)
_REPEATING = ("alias", "cast")
_NO_EPSILON = "no epsilon is added to the mean square"


class Graph(Protocol[Op]):
    """A graph as the grammar sees it.

    `canonical` gives the kind of an operator and its operands: square(a), mul(a, b),
    scale(a, number), div(a, b), reciprocal(a), sqrt(a), rsqrt(a), add(a, b),
    maximum(a, b), abs(a), mean(a, axes), sum(a, axes), max(a, axes), norm(a, axes)
    (the root of the sum of squares), dot(a) (the sum of squares over the last axis),
    cast(a), alias(a), reshape(a), expand(a); None for any other operator. Axes are not
    negative, or None if unknown. Constants are operands of mul and div only if they
    are not scalars.
    """

    # How many factors one norm may have.
    max_weights: int

    def ops(self) -> Iterable[Op]:
        """Returns the operators in execution order."""

    def canonical(self, op: Op) -> tuple[Any, ...] | None:
        """Returns the kind of an operator with its operands."""

    def output(self, op: Op) -> Tensor:
        """Returns the first result of an operator."""

    def shape(self, tensor: Tensor) -> Shape:
        """Returns a shape; integers are static sizes."""

    def dtype(self, tensor: Tensor) -> Hashable:
        """Returns the type of the elements."""

    def widens(self, before: Tensor, after: Tensor) -> bool:
        """Whether a cast keeps every value."""

    def scalar(self, tensor: Tensor) -> float | None:
        """Returns the number that a constant is; None if it is anything else."""

    def epsilon(self, tensor: Tensor) -> float:
        """Returns the epsilon that a scalar constant stands for."""

    def epsilon_of_root(self, tensor: Tensor) -> float:
        """Returns the epsilon whose root a scalar constant is."""

    def is_weight(self, tensor: Tensor, hidden_size: int) -> bool:
        """Whether a tensor may be the weight of rows of that size."""

    def why_not_x(self, tensor: Tensor) -> str | None:
        """Returns why no kernel takes a tensor as x; None if one does."""

    def users(self, tensor: Tensor) -> Iterable[Op]:
        """Returns the operators that read a tensor."""

    def is_output(self, tensor: Tensor) -> bool:
        """Whether a tensor is needed outside of the graph."""

    def describe_op(self, op: Op) -> str:
        """Names an operator in a reason."""

    def describe_tensor(self, tensor: Tensor) -> str:
        """Names a tensor in a reason."""


@dataclasses.dataclass(frozen=True)
class Match(Generic[Op]):
    """One RMSNorm: y = x / sqrt(mean(x²) + epsilon) * product(weights).

    Attributes:
      x: In the type of y.
      weights: Factors of the size of the last dimension.
      epsilon: Added to the mean square.
      y: The result.
      ops: The operators that it consists of, in execution order; the last one
        computes y.
      root: The operator among them that computes the root.
      range_safe: Whether no intermediate leaves the range of float16.
      source: The tensor that x is before casts and reshapes.
      constant: The constant that is epsilon, or its root in the range-safe form.
    """

    x: Tensor
    weights: tuple[Tensor, ...]
    epsilon: float
    y: Tensor
    ops: tuple[Op, ...]
    root: Op
    range_safe: bool
    source: Tensor
    constant: Tensor


@dataclasses.dataclass(frozen=True)
class Refusal(Generic[Op]):
    """A root mean square that is not part of a match.

    Attributes:
      root: The operator that computes the root; of x over the root of its sum of
        squares, the one that multiplies by sqrt(n).
      reason: Why, in words.
    """

    root: Op
    reason: str


@dataclasses.dataclass(frozen=True)
class _Meaning(Generic[Op]):
    """The meaning of a tensor.

    Attributes:
      role: Its meaning.
      x: The tensors whose product is x²; of one source.
      of: The source of what NORM multiplies: of x, or of z in the range-safe form.
      shape: The shape of x².
      ops: The operators that compute it from x.
      problem: Why it is not what its role says, although it looks like it.
      epsilon: Added to the mean square.
      weights: That it is multiplied by.
      root: The operator that computes the root.
      row_scale: The ROW_SCALE that a range-safe form divides by.
      constant: The constant in it, the root of epsilon; else epsilon.
    """

    role: Role
    x: tuple[Tensor, ...]
    of: Tensor
    shape: Shape
    ops: tuple[Op, ...]
    problem: str | None = None
    epsilon: float = math.nan
    weights: tuple[Tensor, ...] = ()
    root: Op | None = None
    row_scale: Tensor = None
    constant: Tensor = None

    def then(self, op: Op, *others: "_Meaning[Op]", **changes: Any) -> "_Meaning[Op]":
        """Returns the meaning of what `op` makes of this, and of others."""
        ops = dict.fromkeys(self.ops)
        for other in others:
            ops.update(dict.fromkeys(other.ops))
        return dataclasses.replace(self, ops=(*ops, op), **changes)


@dataclasses.dataclass(frozen=True)
class _Scaled(Generic[Op]):
    """A product of a tensor x, whose source is `source`, and a weight."""

    x: Tensor
    source: Tensor
    weight: Tensor
    ops: tuple[Op, ...]


def _float32(value: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


_EPSILON_IN_NAME = re.compile(
    r"/(?:sqrt_)?epsilon=((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)$"
)


def epsilon_in_name(name: str) -> float | None:
    """Returns the epsilon in the name of a constant, as `composite.build` names it."""
    found = _EPSILON_IN_NAME.search(name)
    return float(found[1]) if found else None


def epsilon_of_root(root: float, name: str = "") -> float:
    """Returns the epsilon whose root in float32 a constant is.

    Args:
      root: The constant, > 0.
      name: Its name, which may hold epsilon exactly: `.../sqrt_epsilon=1e-06`.

    Returns:
      Epsilon in the name if it has that root, else the shortest decimal that has it,
      else the square of the root.
    """
    root = _float32(root)
    square = root * root
    candidates = [epsilon_in_name(name)]
    candidates += [float(f"{square:.{digits}e}") for digits in range(17)]
    for epsilon in candidates:
        if epsilon and math.isfinite(epsilon) and _float32(math.sqrt(epsilon)) == root:
            return epsilon
    return square


class _Matcher(Generic[Op]):
    """One sweep over a graph."""

    def __init__(self, graph: Graph[Op]) -> None:
        self._graph = graph
        self._meanings: dict[Tensor, _Meaning[Op]] = {}
        self._scaled: dict[Tensor, _Scaled[Op]] = {}
        # A tensor and what it was before casts and reshapes, the nearest ones.
        self._versions: dict[Tensor, tuple[Tensor, ...]] = {}
        self._sources: dict[Tensor, Tensor] = {}
        # A weight with further dimensions of 1, or repeated, and the weight itself.
        self._weights: dict[Tensor, Tensor] = {}
        # Why each root is not in a match, and the tensors computed from it.
        self._reasons: dict[Op, str | None] = {}
        self._from_root: dict[Op, list[Tensor]] = {}
        self._matches: dict[Op, Match[Op]] = {}

    def run(self) -> tuple[list[Match[Op]], list[Refusal[Op]]]:
        graph = self._graph
        for op in graph.ops():
            canonical = graph.canonical(op)
            if canonical is None:
                continue
            kind, *operands = canonical
            m = getattr(self, f"_{kind}")(op, *operands)
            if m is None:
                continue
            if len(m.ops) > _MAX_OPS:
                self._refuse(m, f"it consists of more than {_MAX_OPS} operators")
                continue
            y = graph.output(op)
            self._meanings[y] = m
            if m.root is not None:
                self._from_root[m.root].append(y)
            # A norm ends before what only repeats its values, in a wider type.
            is_repeated = kind in _REPEATING and graph.widens(operands[0], y)
            if m.role is Role.NORM and not (is_repeated and m.root in self._matches):
                self._consider(m, y)
        refusals = [
            Refusal(op, reason or self._why_no_norm(op))
            for op, reason in self._reasons.items()
            if op not in self._matches
        ]
        return list(self._matches.values()), refusals

    # Versions of one tensor: before and after what keeps every element.

    def _source(self, tensor: Tensor) -> Tensor:
        return self._sources.get(tensor, tensor)

    def _versions_of(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return self._versions.get(tensor, (tensor,))

    def _is_version(self, op: Op, before: Tensor) -> None:
        after = self._graph.output(op)
        self._sources[after] = self._source(before)
        self._versions[after] = (after, *self._versions_of(before))[:_MAX_VERSIONS]
        if before in self._weights:
            self._weights[after] = self._weights[before]

    def _weight(self, tensor: Tensor, hidden_size: Any) -> Tensor:
        """Returns the weight that a factor of x is; None if it is none."""
        if not isinstance(hidden_size, int):
            return None
        for weight in (tensor, self._weights.get(tensor)):
            if weight is not None and self._graph.is_weight(weight, hidden_size):
                return weight
        return None

    # The rules: what an operator makes of its operands; None for nothing of interest.

    def _is(self, tensor: Tensor, *roles: Role) -> _Meaning[Op] | None:
        m = self._meanings.get(tensor)
        return m if m is not None and m.role in roles else None

    def _cast(self, op: Op, a: Tensor) -> _Meaning[Op] | None:
        if self._graph.widens(a, self._graph.output(op)):
            self._is_version(op, a)
        return self._same(op, a)

    def _same(self, op: Op, a: Tensor) -> _Meaning[Op] | None:
        scaled = self._scaled.get(a)
        if scaled is not None and len(scaled.ops) < _MAX_OPS:
            self._scaled[self._graph.output(op)] = dataclasses.replace(
                scaled, ops=(*scaled.ops, op)
            )
        m = self._meanings.get(a)
        return m and m.then(op)

    def _alias(self, op: Op, a: Tensor) -> _Meaning[Op] | None:
        self._is_version(op, a)
        return self._same(op, a)

    def _reshape(self, op: Op, a: Tensor) -> _Meaning[Op] | None:
        y = self._graph.output(op)
        before, after = self._graph.shape(a), self._graph.shape(y)
        if _without_leading_ones(before) == _without_leading_ones(after):
            self._is_version(op, a)
        self._note_weight(y, a, before, after)
        m = self._meanings.get(a)
        if m is None or m.role in _ROLES_OF_ELEMENTS or m.weights:
            return None
        return m.then(op)

    def _expand(self, op: Op, a: Tensor) -> _Meaning[Op] | None:
        y = self._graph.output(op)
        before, after = self._graph.shape(a), self._graph.shape(y)
        if before == after:
            return self._alias(op, a)
        self._note_weight(y, a, before, after)
        m = self._meanings.get(a)
        if m is None or m.role in _ROLES_OF_ELEMENTS or m.weights:
            return None
        is_of_rows = before == [*m.shape[:-1], 1] and after == m.shape
        return m.then(op) if is_of_rows else None

    def _note_weight(self, y: Tensor, a: Tensor, before: Shape, after: Shape) -> None:
        if len(_without_leading_ones(before)) == 1 and before[-1:] == after[-1:]:
            self._weights[y] = self._weights.get(a, a)

    def _square(self, op: Op, *factors: Tensor) -> _Meaning[Op]:
        if m := self._is(factors[0], Role.ROOT_SUM_SQUARE):
            return m.then(op, role=Role.SUM_SQUARE)
        m = self._is(factors[0], Role.SCALED_ROOT, Role.INVERSE_ROW_SCALE)
        # 1 / ROW_SCALE is c / ROW_SCALE for an epsilon of 1.
        if m and (m.role is Role.SCALED_ROOT or self._graph.scalar(m.constant) == 1):
            return m.then(op, role=Role.SCALED_SHIFT)
        shape = self._graph.shape(self._graph.output(op))
        m = self._is(factors[0], Role.ABS)
        # A magnitude that nothing else reads, as in the norm of a vector.
        if m and {factors[0]} == set(factors) and self._is_read_by(factors[0], op):
            return m.then(op, role=Role.SQUARE, shape=shape)
        return _Meaning(Role.SQUARE, factors, self._source(factors[0]), shape, (op,))

    def _is_read_by(self, tensor: Tensor, op: Op) -> bool:
        """Whether an operator, and nothing else, needs a tensor."""
        graph = self._graph
        return not graph.is_output(tensor) and set(graph.users(tensor)) == {op}

    def _dot(self, op: Op, x: Tensor) -> _Meaning[Op]:
        shape = self._graph.shape(x)
        return _Meaning(Role.SUM_SQUARE, (x,), self._source(x), shape, (op,))

    def _norm(self, op: Op, x: Tensor, axes: Sequence[int] | None) -> _Meaning[Op]:
        m = self._dot(op, x)
        return dataclasses.replace(
            m, role=Role.ROOT_SUM_SQUARE, problem=_why_not_last(axes, m.shape)
        )

    def _mean(
        self, op: Op, a: Tensor, axes: Sequence[int] | None
    ) -> _Meaning[Op] | None:
        return self._reduce(op, a, axes, Role.MEAN_SQUARE)

    def _sum(
        self, op: Op, a: Tensor, axes: Sequence[int] | None
    ) -> _Meaning[Op] | None:
        return self._reduce(op, a, axes, Role.SUM_SQUARE)

    def _reduce(
        self, op: Op, a: Tensor, axes: Sequence[int] | None, role: Role
    ) -> _Meaning[Op] | None:
        m = self._is(a, Role.SQUARE)
        return m and m.then(op, role=role, problem=_why_not_last(axes, m.shape))

    def _scale(self, op: Op, a: Tensor, factor: float) -> _Meaning[Op] | None:
        if factor == 1:
            return self._alias(op, a)
        if m := self._is(a, Role.INVERSE_ROW_SCALE):
            return self._scaled_root(op, m, factor)
        if m := self._is(a, Role.ROOT_SUM_SQUARE, Role.UNIT_X):
            return self._scaled_by_root_of_size(op, m, factor)
        m = self._is(a, Role.SUM_SQUARE)
        if m is None:
            return None
        size, problem = (m.shape or [0])[-1], m.problem
        is_static = isinstance(size, int) and size > 0
        if is_static and _float32(factor) != _float32(1 / size):
            what = f"the sum of {size} squares is multiplied by {factor}"
            problem = problem or what
        return m.then(op, role=Role.MEAN_SQUARE, problem=problem)

    def _scaled_by_root_of_size(
        self, op: Op, m: _Meaning[Op], factor: float
    ) -> _Meaning[Op] | None:
        """Returns what looks like the root of a mean square, or x over it."""
        size = (m.shape or [0])[-1]
        is_static = isinstance(size, int) and size > 0
        power = -0.5 if m.role is Role.ROOT_SUM_SQUARE else 0.5
        # Nothing is accepted by it, so that how it was rounded does not matter.
        if not is_static or not math.isclose(factor, size**power, rel_tol=1e-6):
            return None
        self._from_root[op] = []
        self._reasons[op] = self._why_no_root(m) or _NO_EPSILON
        if m.role is Role.UNIT_X:
            return None
        return m.then(op, role=Role.BARE_RMS, root=op)

    def _add(self, op: Op, a: Tensor, b: Tensor) -> _Meaning[Op] | None:
        for p, q in ((a, b), (b, a)):
            if m := self._is(p, Role.MEAN_SQUARE):
                return self._shift(op, m, p, q)
            if m := self._is(p, Role.SUM_SQUARE):
                problem = m.problem or "the sum of squares is not divided by its length"
                return m.then(op, role=Role.SHIFTED, problem=problem)
            if m := self._is(p, Role.BARE_RMS):
                where = self._graph.describe_op(op)
                self._refuse(m, f"epsilon is added to the root, in {where}, not inside")
        return None

    def _shift(
        self, op: Op, m: _Meaning[Op], mean: Tensor, shift: Tensor
    ) -> _Meaning[Op]:
        graph = self._graph
        z = self._is(m.x[0], Role.RANGE_SCALED_X)
        scaled = self._is(shift, Role.SCALED_SHIFT)
        is_of_rows = graph.shape(shift) == graph.shape(mean)
        if scaled and z and z.row_scale == scaled.row_scale and is_of_rows:
            return m.then(
                op,
                *self._range_scaled_among(*m.x),
                scaled,
                role=Role.SHIFTED,
                x=z.x,
                epsilon=graph.epsilon_of_root(z.constant),
                row_scale=z.row_scale,
                constant=z.constant,
            )
        epsilon, problem = graph.scalar(shift), None
        if epsilon is None:
            problem = f"epsilon, {graph.describe_tensor(shift)}, is not a scalar"
            problem += " constant of type float32 or float16"
        elif not (math.isfinite(epsilon) and epsilon > 0):
            problem = f"epsilon must be finite and > 0, it is {epsilon}"
        else:
            epsilon = graph.epsilon(shift)
        return m.then(
            op,
            role=Role.SHIFTED,
            constant=shift,
            epsilon=math.nan if epsilon is None else epsilon,
            problem=m.problem or problem,
        )

    def _maximum(self, op: Op, a: Tensor, b: Tensor) -> _Meaning[Op] | None:
        for p, q in ((a, b), (b, a)):
            if m := self._is(p, Role.MEAN_SQUARE):
                problem = "the mean square is bounded from below, not added to epsilon"
                return m.then(op, role=Role.SHIFTED, problem=m.problem or problem)
            if m := self._is(p, Role.BARE_RMS):
                where = self._graph.describe_op(op)
                self._refuse(m, f"the root is bounded from below, in {where}")
            if m := self._is(p, Role.ROOT_SUM_SQUARE):
                where = self._graph.describe_op(op)
                problem = f"the root is bounded from below, in {where}; {_NO_EPSILON}"
                return m.then(op, problem=m.problem or problem)
            clamp = self._graph.scalar(q)
            if (m := self._is(p, Role.MAX_ABS)) and clamp and 0 < clamp < math.inf:
                scale = self._graph.output(op)
                return m.then(op, role=Role.ROW_SCALE, row_scale=scale, constant=q)
        return None

    def _abs(self, op: Op, a: Tensor) -> _Meaning[Op]:
        shape = self._graph.shape(a)
        return _Meaning(Role.ABS, (a,), self._source(a), shape, (op,))

    def _max(
        self, op: Op, a: Tensor, axes: Sequence[int] | None
    ) -> _Meaning[Op] | None:
        m = self._is(a, Role.ABS)
        if m is None or _why_not_last(axes, m.shape):
            return None
        return m.then(op, role=Role.MAX_ABS)

    def _sqrt(self, op: Op, a: Tensor) -> _Meaning[Op] | None:
        if m := self._is(a, Role.SUM_SQUARE):
            return m.then(op, role=Role.ROOT_SUM_SQUARE)
        if m := self._is(a, Role.INVERSE_SHIFTED):
            return self._root(op, m, Role.INVERSE_RMS)
        m = self._is(a, Role.SHIFTED, Role.MEAN_SQUARE)
        return m and self._root(op, m, Role.RMS)

    def _rsqrt(self, op: Op, a: Tensor) -> _Meaning[Op] | None:
        m = self._is(a, Role.SHIFTED, Role.MEAN_SQUARE)
        return m and self._root(op, m, Role.INVERSE_RMS)

    def _root(self, op: Op, m: _Meaning[Op], role: Role) -> _Meaning[Op] | None:
        self._from_root[op] = []
        self._reasons[op] = self._why_no_root(m)
        if m.role is Role.MEAN_SQUARE:
            role = Role.BARE_RMS
        elif self._reasons[op] is not None:
            return None
        return m.then(op, role=role, root=op)

    def _why_no_root(self, m: _Meaning[Op]) -> str | None:
        why_not_x = self._graph.why_not_x(m.x[0])
        if why_not_x is not None:
            return why_not_x
        if m.problem is not None:
            return m.problem
        if m.role is Role.MEAN_SQUARE:
            return _NO_EPSILON
        if not isinstance(m.shape[-1], int) or m.shape[-1] <= 0:
            return f"the last dimension of {m.shape} is not static"
        return None

    def _reciprocal(self, op: Op, a: Tensor) -> _Meaning[Op] | None:
        if m := self._is(a, Role.ROW_SCALE):
            return m.then(op, role=Role.INVERSE_ROW_SCALE)
        if m := self._is(a, Role.SHIFTED):
            return m.then(op, role=Role.INVERSE_SHIFTED)
        m = self._is(a, Role.RMS)
        return m and m.then(op, role=Role.INVERSE_RMS)

    def _div(self, op: Op, a: Tensor, b: Tensor) -> _Meaning[Op] | None:
        if m := self._is(b, Role.ROW_SCALE):
            clamp = self._graph.scalar(a)
            if clamp is not None:
                return self._scaled_root(op, m, clamp)
            return self._range_scaled(op, m, a, b)
        if m := self._is(b, Role.ROOT_SUM_SQUARE):
            is_of_x = self._source(a) == m.of and self._is_row(b, m)
            return m.then(op, role=Role.UNIT_X) if is_of_x else None
        m = self._is(b, Role.RMS)
        return self._normalize(op, m, b, a) if m else None

    def _mul(self, op: Op, a: Tensor, b: Tensor) -> _Meaning[Op] | None:
        if self._source(a) == self._source(b):
            return self._square(op, a, b)
        for p, q in ((a, b), (b, a)):
            m = self._is(p, Role.INVERSE_ROW_SCALE)
            if m and (scaled := self._range_scaled(op, m, q, p)):
                return scaled
            m = self._is(p, Role.INVERSE_RMS)
            if m and (norm := self._normalize(op, m, p, q)):
                return norm
            self._note_scaled(op, p, q)
        for p, q in ((a, b), (b, a)):
            m = self._is(p, Role.NORM)
            if m and (norm := self._add_weight(op, m, q)):
                return norm
        return None

    def _scaled_root(self, op: Op, m: _Meaning[Op], root: float) -> _Meaning[Op] | None:
        clamp = self._graph.scalar(m.constant)
        if clamp is None or _float32(root) != _float32(clamp):
            return None
        return m.then(op, role=Role.SCALED_ROOT)

    def _range_scaled(
        self, op: Op, m: _Meaning[Op], x: Tensor, scale: Tensor
    ) -> _Meaning[Op] | None:
        if self._source(x) != m.of or not self._is_row(scale, m):
            return None
        return m.then(op, role=Role.RANGE_SCALED_X, x=(*m.x, x))

    def _range_scaled_among(self, *tensors: Tensor) -> list[_Meaning[Op]]:
        """Returns the meanings of z, in whose operators its casts are, too."""
        found = [self._is(tensor, Role.RANGE_SCALED_X) for tensor in tensors]
        return [m for m in found if m is not None]

    def _note_scaled(self, op: Op, x: Tensor, factor: Tensor) -> None:
        shape = self._graph.shape(x)
        weight = self._weight(factor, shape[-1]) if shape else None
        if weight is not None:
            y = self._graph.output(op)
            self._scaled[y] = _Scaled(x, self._source(x), weight, (op,))

    def _normalize(
        self, op: Op, m: _Meaning[Op], statistic: Tensor, other: Tensor
    ) -> _Meaning[Op] | None:
        """Returns what a row statistic makes of x, of a scaled x, or of a weight."""
        scaled = self._scaled.get(other)
        is_scaled = scaled is not None and scaled.source == m.of
        if not self._is_row(statistic, m):
            if is_scaled or self._source(other) == m.of:
                shape = self._graph.shape(statistic)
                self._refuse(m, f"the statistic has shape {shape}, x has {m.shape}")
            return None
        if self._source(other) == m.of:
            return m.then(op, *self._range_scaled_among(other), role=Role.NORM)
        if scaled is not None and is_scaled:
            if len(m.weights) == self._graph.max_weights:
                return None
            weights = (*m.weights, scaled.weight)
            ops = tuple(dict.fromkeys((*m.ops, *scaled.ops)))
            m = dataclasses.replace(m, ops=ops, weights=weights)
            return m.then(op, *self._range_scaled_among(scaled.x), role=Role.NORM)
        return self._add_weight(op, m, other, role=Role.INVERSE_RMS)

    def _add_weight(
        self, op: Op, m: _Meaning[Op], factor: Tensor, **changes: Any
    ) -> _Meaning[Op] | None:
        weight = self._weight(factor, m.shape[-1])
        if weight is None or len(m.weights) == self._graph.max_weights:
            return None
        return m.then(op, weights=(*m.weights, weight), **changes)

    def _is_row(self, tensor: Tensor, m: _Meaning[Op]) -> bool:
        """Whether a statistic of the rows of x is one number per row, or repeated."""
        shape = self._graph.shape(tensor)
        if shape == m.shape:
            return True
        return not m.weights and shape == [*m.shape[:-1], 1]

    # The matches of the rules, looked at from outside.

    def _refuse(self, m: _Meaning[Op], reason: str) -> None:
        """Notes the reason; the first one stays, but for what explains a bare root."""
        if m.root is None:
            return
        if self._reasons[m.root] is None or m.role is Role.BARE_RMS:
            self._reasons[m.root] = reason

    def _consider(self, m: _Meaning[Op], y: Tensor) -> None:
        """Takes y if x is at hand in its type, and nothing inside is needed."""
        graph = self._graph
        shape, dtype = graph.shape(y), graph.dtype(y)
        versions = dict.fromkeys(v for x in m.x for v in self._versions_of(x))
        variants = [
            v for v in versions if graph.dtype(v) == dtype and graph.shape(v) == shape
        ]
        if not variants:
            self._refuse(
                m,
                f"x is not at hand in the type and shape of {graph.describe_tensor(y)}",
            )
            return
        reason = self._why_open(y, m.ops) or graph.why_not_x(variants[0])
        if reason is not None:
            self._refuse(m, reason)
            return
        assert m.root is not None
        self._matches[m.root] = Match(
            variants[0],
            tuple(self._in_type(w, dtype) for w in m.weights),
            m.epsilon,
            y,
            m.ops,
            m.root,
            m.row_scale is not None,
            self._source(variants[0]),
            m.constant,
        )

    def _in_type(self, weight: Tensor, dtype: Hashable) -> Tensor:
        """Returns a weight as it was before a cast, if that is x's type."""
        shape = self._graph.shape(weight)
        for version in self._versions_of(weight):
            if (
                self._graph.dtype(version) == dtype
                and self._graph.shape(version) == shape
            ):
                return version
        return weight

    def _why_open(self, y: Tensor, ops: tuple[Op, ...]) -> str | None:
        """Returns why an intermediate cannot go away; None if all can."""
        graph, inside = self._graph, set(ops)
        for tensor in map(graph.output, ops):
            if tensor == y:
                continue
            if graph.is_output(tensor):
                name = graph.describe_tensor(tensor)
                return f"the intermediate {name} is an output of the graph"
            for user in graph.users(tensor):
                if user not in inside:
                    return (
                        f"the intermediate {graph.describe_tensor(tensor)} is used by"
                        f" {graph.describe_op(user)}, too"
                    )
        return None

    def _why_no_norm(self, root: Op) -> str:
        graph, tensors = self._graph, set(self._from_root[root])
        ends = [
            graph.describe_op(user)
            for tensor in self._from_root[root]
            for user in graph.users(tensor)
            if graph.output(user) not in tensors
        ]
        where = ", ".join(list(dict.fromkeys(ends))[:3]) or "nothing"
        return f"1 / rms(x) is not multiplied by x, but goes into {where}"


def _without_leading_ones(shape: Shape) -> Shape:
    leading = next((i for i, size in enumerate(shape) if size != 1), len(shape))
    return shape[leading:]


def _why_not_last(axes: Sequence[int] | None, shape: Shape) -> str | None:
    if axes is not None and shape and list(axes) == [len(shape) - 1]:
        return None
    return f"the mean is over the axes {axes} of {shape}, not over the last one"


def find(graph: Graph[Op]) -> tuple[list[Match[Op]], list[Refusal[Op]]]:
    """Finds every RMSNorm in a graph, the longest chain of each.

    Takes time proportional to the size of the graph, whatever it holds.

    Returns:
      The norms, and the root mean squares that are not part of one, with the reason.
    """
    return _Matcher(graph).run()
