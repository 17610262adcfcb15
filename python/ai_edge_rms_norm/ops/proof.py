"""Proves that the forward of a module is RMSNorm over the last dimension.

The forward is traced with fake tensors: with one to five dimensions, all but the last
one symbols, and with leading dimensions of 1; in training and in evaluation; with other
hidden sizes; and for each pair of the dtypes of x and the parameters. It is proven if
every graph as a whole is one RMSNorm of the grammar in `ai_edge_rms_norm.pattern`, if
the leading dimensions did not matter, and if all graphs agree.
"""

import contextlib
import copy
import dataclasses
import functools
import inspect
import itertools
import logging
import operator
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch._subclasses import fake_tensor
from torch.fx.experimental import proxy_tensor, symbolic_shapes

from ai_edge_rms_norm import pattern
from ai_edge_rms_norm.ops import fx_graph, replacement, rms_norm

__all__ = [
    "Factor",
    "NotProvenError",
    "Proof",
    "StandIn",
    "default_state",
    "device_of",
    "dtype_pairs",
    "prove",
    "summary",
    "tensors_of",
]

_ATEN = torch.ops.aten
_DTYPES = rms_norm.FLOATING_DTYPES
# Where a norm takes 2-D to 4-D, there may be a case for the ranks beside them.
_RANKS = (3, 1, 2, 4, 5)
# Leading dimensions: no two are equal, and none is 0 or 1, which are special.
_SIZES = (3, 5, 7, 11)
# Of norms without a weight. Heads of one size divide some of them, not all.
_HIDDEN_SIZES = (24, 64, 128, 210)


class NotProvenError(Exception):
    """The message says what is not as in an RMSNorm."""


@dataclasses.dataclass(frozen=True)
class Factor:
    """A factor of the weight: the parameter or buffer `name`, plus `offset`."""

    name: str
    offset: float

    def __str__(self) -> str:
        return f"({self.name} + {self.offset})" if self.offset else self.name


@dataclasses.dataclass(frozen=True)
class Proof:
    """The function that a forward was proven to compute.

        x / sqrt(mean(x**2, dim=-1) + epsilon) * product(parameter + offset)

    Attributes:
      argument: The name of x in the forward.
      hidden_size: The only size of the last dimension; None for any.
      epsilon: Added to the mean square; None for that of `torch.nn.RMSNorm` by default.
      epsilon_buffer: The buffer that holds epsilon, if one does.
      factors: Those of the weight, in the order of the parameters.
      rule: That of `replacement.result_dtype` for the dtype of the result.
    """

    argument: str
    hidden_size: int | None
    epsilon: float | None
    epsilon_buffer: str | None
    factors: tuple[Factor, ...]
    rule: str


def summary(error: BaseException) -> str:
    """Returns the first line of an exception, to be part of a reason."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class StandIn:
    """A module that can be run without a trace of it left in the original.

    The parameters and buffers are inputs; everything else is the module's own, copied
    where the forward could change it.

    Args:
      module: The module to stand in for.
      training: Whether it is in training mode.
    """

    def __init__(self, module: torch.nn.Module, training: bool) -> None:
        self._original = module
        self._module = copy.copy(module)
        state = vars(self._module)
        for name, value in state.items():
            if isinstance(value, dict | list | set):
                state[name] = copy.copy(value)
        self._module.training = training

    def __call__(self, tensors: dict[str, torch.Tensor], x: torch.Tensor) -> Any:
        """Runs the forward with parameters and buffers by name.

        Raises:
          NotProvenError: The forward changed an attribute.
        """
        y = torch.func.functional_call(self._module, tensors, (x,))
        before, after = vars(self._original), vars(self._module)
        for name in before.keys() | after.keys():
            if name != "training" and not _is_same(before.get(name), after.get(name)):
                raise NotProvenError(f"its forward changes its attribute {name}")
        return y


def _is_same(a: Any, b: Any) -> bool:
    """Whether an attribute is what it was, one level deep."""
    if a is b:
        return True
    if type(a) is not type(b) or not isinstance(a, dict | list | set):
        return False
    if isinstance(a, dict):
        a, b = [*a.items()], [*b.items()]
        a, b = [*itertools.chain(*a)], [*itertools.chain(*b)]
    if isinstance(a, set):
        return bool(a == b)
    return len(a) == len(b) and all(map(lambda p, q: p is q, a, b))


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the tensors that may be factors of the weight, by name.

    These are the parameters and the buffers with more than one element; a buffer of one
    element may be epsilon.
    """
    buffers = {k: v for k, v in module.named_buffers() if v.numel() > 1}
    tensors = {**dict(module.named_parameters()), **buffers}
    return {k: v for k, v in tensors.items() if v.is_floating_point()}


def device_of(module: torch.nn.Module) -> torch.device:
    """Returns the device that a module can be run on: its own, or the CPU for meta."""
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    return torch.device("cpu") if device.type == "meta" else device


@contextlib.contextmanager
def default_state(device: torch.device) -> Iterator[None]:
    """Undoes what the process may have set around a call: modes, autocast, device.

    Warnings of a forward are not for those who call `prove`.
    """
    with (
        warnings.catch_warnings(),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        device,
    ):
        warnings.simplefilter("ignore")
        yield


class _Graph(fx_graph.Graph):
    """A graph in which all floating dtypes are the same.

    Args:
      graph: As for `fx_graph.Graph`.
      constants: As for `fx_graph.Graph`.
      names: Those of placeholders in reasons.
    """

    def __init__(
        self,
        graph: torch.fx.Graph,
        constants: Mapping[str, torch.Tensor],
        names: Mapping[torch.fx.Node, str],
    ) -> None:
        super().__init__(graph, constants)
        self._names = names

    def canonical(self, op: torch.fx.Node) -> tuple[Any, ...] | None:
        schema = getattr(op.target, "_schema", None)
        # The marks of a composite in litert-torch and ai-edge-torch pass it on.
        if schema is not None and schema.name.endswith("::mark_tensor"):
            return "alias", op.args[0]
        return super().canonical(op)

    def describe_tensor(self, tensor: Any) -> str:
        return self._names.get(tensor) or super().describe_tensor(tensor)

    def dtype(self, tensor: Any) -> torch.dtype | None:
        dtype = super().dtype(tensor)
        return torch.float32 if dtype in _DTYPES else dtype

    def why_not_x(self, tensor: Any) -> str | None:
        if self.dtype(tensor) == torch.float32:
            return None
        return super().why_not_x(tensor)


@dataclasses.dataclass(frozen=True)
class _Case:
    """The inputs that a forward is traced with.

    Attributes:
      shape: That of x; None for a symbol, which takes longer.
      dtype: That of x.
      weight_dtype: That of the parameters.
      training: Whether the module is in training mode.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype = torch.float32
    training: bool = False

    def __str__(self) -> str:
        sizes = ", ".join("any" if n is None else str(n) for n in self.shape)
        mode = ", training" if self.training else ""
        return f"x of shape [{sizes}] in {self.dtype}{mode}"


@dataclasses.dataclass(frozen=True)
class _Norm:
    """The RMSNorm of one graph."""

    epsilon: float
    factors: tuple[Factor, ...]
    dtype: torch.dtype


class _UntraceableError(NotProvenError):
    """The forward raised."""


def _is_node(value: Any) -> TypeGuard[torch.fx.Node]:
    return isinstance(value, torch.fx.Node)


def _fake_x(
    mode: fake_tensor.FakeTensorMode, case: _Case, device: torch.device
) -> torch.Tensor:
    sizes = [n or _SIZES[i] for i, n in enumerate(case.shape)]
    kinds = [
        symbolic_shapes.DimDynamic.DYNAMIC
        if size is None
        else symbolic_shapes.DimDynamic.STATIC
        for size in case.shape
    ]
    return mode.from_tensor(
        torch.empty(sizes, dtype=case.dtype, device=device),
        symbolic_context=symbolic_shapes.StatelessSymbolicContext(dynamic_sizes=kinds),
    )


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
    """Keeps torch from logging what a forward raises when it is traced."""
    logger = logging.getLogger(fake_tensor.__name__)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    # A plain dict: to iterate over the table of torch.export takes 0.1 s.
    return dict(torch.export.default_decompositions())


def _make_fx(
    run: Callable[..., Any], inputs: list[torch.Tensor]
) -> torch.fx.GraphModule:
    trace = proxy_tensor.make_fx(
        run, decomposition_table=_decompositions(), _allow_non_fake_inputs=True
    )
    return trace(*inputs)


def _is_mutable(node: torch.fx.Node) -> bool:
    target = node.target
    # An operator has no public way to ask.
    schema = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _trace(module: torch.nn.Module, case: _Case) -> torch.fx.GraphModule:
    """Returns the graph of the forward: x and the tensors are its placeholders."""
    stand_in, device = StandIn(module, case.training), device_of(module)
    shapes = symbolic_shapes.ShapeEnv()
    mode = fake_tensor.FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    tensors = tensors_of(module)

    def run(x: torch.Tensor, *values: torch.Tensor) -> Any:
        return stand_in(dict(zip(tensors, values, strict=True)), x)

    with default_state(device), _no_log():
        fakes = [
            mode.from_tensor(
                torch.empty(t.shape, dtype=case.weight_dtype, device=device),
                static_shapes=True,
            )
            for t in tensors.values()
        ]
        inputs = [_fake_x(mode, case, device), *fakes]
        try:
            graph_module = _make_fx(run, inputs)
            if any(map(_is_mutable, graph_module.graph.nodes)):
                # F.rms_norm shows its operators, one of them in place, only now.
                functional = torch.func.functionalize(graph_module)
                graph_module = _make_fx(functional, inputs)
        except NotProvenError:
            raise
        except Exception as error:  # Whatever a forward of some other kind raises.
            raise _UntraceableError(
                f"it cannot be traced with {case}: {summary(error)}"
            ) from error
    if shapes.guards:
        raise NotProvenError(
            "what it computes depends on the leading dimensions of x, with"
            f" {case}: {shapes.guards[0].expr}"
        )
    graph_module.graph.eliminate_dead_code()
    return graph_module


class _Reader:
    """Reads a traced forward.

    Args:
      graph_module: The result of `_trace`.
      names: Those of the tensors after x.
    """

    def __init__(
        self, graph_module: torch.fx.GraphModule, names: Sequence[str]
    ) -> None:
        graph = graph_module.graph
        attributes = (str(node.target) for node in graph.nodes if node.op == "get_attr")
        constants = {name: getattr(graph_module, name) for name in attributes}
        self._nodes = list(graph.nodes)
        self._x, *tensors = [n for n in self._nodes if n.op == "placeholder"]
        self._names = dict(zip(tensors, names, strict=True))
        self._graph = _Graph(graph, constants, self._names)
        self._read: set[torch.fx.Node] = set()

    def read(self) -> _Norm:
        """Returns the norm that the graph is.

        Raises:
          NotProvenError: It is something else, or there is something else in it.
        """
        y = self._output()
        matches, refusals = pattern.find(self._graph)
        if refusals:
            raise NotProvenError(f"it computes something else: {refusals[0].reason}")
        last = self._before_copies(y)
        match = next((m for m in matches if self._before_copies(m.y) is last), None)
        if match is None or self._before_copies(match.source) is not self._x:
            raise NotProvenError(self._why_not(matches))
        self._read.update(match.ops)
        factors = [f for weight in match.weights for f in self._factors(weight)]
        self._check_nothing_else()
        names = [factor.name for factor in factors]
        if len(set(names)) != len(names):
            raise NotProvenError(f"it multiplies by {names}, one of them twice")
        order = list(self._names.values())
        factors.sort(key=lambda factor: order.index(factor.name))
        return _Norm(match.epsilon, tuple(factors), fx_graph.value_of(y).dtype)  # type: ignore[union-attr]

    def _output(self) -> torch.fx.Node:
        (y,) = self._nodes[-1].args
        value, x = fx_graph.value_of(y), fx_graph.value_of(self._x)
        if not _is_node(y) or value is None or x is None:
            raise NotProvenError("its output is not one tensor")
        if list(map(str, value.shape)) != list(map(str, x.shape)):
            raise NotProvenError(
                f"its output has the shape {list(value.shape)}, x has {list(x.shape)}"
            )
        return y

    def _copied(self, node: torch.fx.Node) -> torch.fx.Node | None:
        """Returns what a node is a copy of, in another floating dtype or the same."""
        if node.op != "call_function":
            return None
        canonical = self._graph.canonical(node)
        return canonical[1] if canonical and canonical[0] == "alias" else None

    def _before_copies(self, node: torch.fx.Node) -> torch.fx.Node:
        while (before := self._copied(node)) is not None:
            self._read.add(node)
            node = before
        return node

    def _others(self, known: Collection[torch.fx.Node]) -> str:
        """Lists the operators that compute tensors and are not known."""
        others = [
            str(node.target)
            for node in self._nodes
            if node.op == "call_function"
            and node.target is not operator.getitem  # Its operand is listed.
            and node not in known
            and not isinstance(node.meta.get("val"), int | torch.SymInt)
            and self._copied(node) is None
            and self._graph.scalar(node) is None
        ]
        return ", ".join(dict.fromkeys(others))

    def _why_not(self, matches: Sequence[pattern.Match[torch.fx.Node]]) -> str:
        others = self._others({op for match in matches for op in match.ops})
        what = " besides an RMSNorm" if matches else ""
        return f"it computes something else{what}: {others or 'nothing'}"

    def _check_nothing_else(self) -> None:
        if others := self._others(self._read):
            raise NotProvenError(
                f"it computes something else besides an RMSNorm: {others}"
            )

    def _factors(self, weight: torch.fx.Node) -> list[Factor]:
        """Returns the parameters whose product, with their offsets, a weight is."""
        node = self._before_copies(weight)
        self._read.add(node)
        if node in self._names:
            return [Factor(self._names[node], 0.0)]
        canonical = self._graph.canonical(node) if node.op == "call_function" else None
        kind, *operands = canonical or (None,)
        if self._is_ones(node):
            return []
        if kind == "mul":
            a, b = operands
            return [*self._factors(a), *self._factors(b)]
        if kind == "add":
            for a, b in (operands, operands[::-1]):
                offset = self._graph.scalar(b)
                if offset is not None and _is_node(a):
                    (factor,) = self._factors(a)
                    return [Factor(factor.name, factor.offset + offset)]
        raise NotProvenError(
            "expected its weight to be parameters plus numbers, it comes from"
            f" {node.target}"
        )

    @staticmethod
    def _is_ones(node: torch.fx.Node) -> bool:
        """Whether a node is a constant of ones, as litert-torch multiplies by."""
        return node.target is _ATEN.full.default and bool(node.args[1] == 1)


def _check_structure(module: torch.nn.Module) -> None:
    if next(module.children(), None) is not None:
        raise NotProvenError("it has submodules")
    if any(map(torch.nn.parameter.is_lazy, module.parameters())):
        raise NotProvenError("its parameters are not initialized")
    # Pre-hooks and backward hooks included; on a new module they would be lost.
    if any("hooks" in name and value for name, value in vars(module).items()):
        raise NotProvenError("it has hooks")
    if "forward" in vars(module):
        raise NotProvenError("its forward was replaced on the instance")
    if type(module).__call__ is not torch.nn.Module.__call__:
        raise NotProvenError("its class has a __call__ of its own")


def _argument(module: torch.nn.Module) -> str:
    """Returns the name of x in the forward."""
    parameters = inspect.signature(module.forward).parameters
    kinds = [parameter.kind for parameter in parameters.values()]
    if kinds != [inspect.Parameter.POSITIONAL_OR_KEYWORD]:
        raise NotProvenError(
            f"its forward takes {', '.join(parameters) or 'nothing'}; expected x alone"
        )
    return next(iter(parameters))


def dtype_pairs(
    tensors: Mapping[str, torch.Tensor],
) -> list[tuple[torch.dtype, torch.dtype]]:
    """Returns the dtypes of x and of the weight that a norm may be run with."""
    if tensors:
        return list(itertools.product(_DTYPES, _DTYPES))
    return [(dtype, dtype) for dtype in _DTYPES]


def _product(factors: Sequence[Factor]) -> str:
    return " * ".join(map(str, factors)) or "none"


class _Prover:
    """The traces of one module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._names = list(tensors_of(module))
        self._first: _Norm | None = None

    def norm(self, case: _Case) -> _Norm:
        """Returns the norm that the forward is in a case; the same as in others."""
        graph_module = _trace(self._module, case)
        try:
            norm = _Reader(graph_module, self._names).read()
        except NotProvenError as error:
            raise NotProvenError(f"{error} (with {case})") from error
        first = self._first = self._first or norm
        if norm.factors != first.factors:
            raise NotProvenError(
                f"its weight is {_product(norm.factors)} with {case}, else"
                f" {_product(first.factors)}"
            )
        return norm

    def runs(self, shape: tuple[int, ...]) -> bool:
        """Whether the forward takes zeros of that shape."""
        device = device_of(self._module)
        with default_state(device):
            zeros = {
                name: torch.zeros(tensor.shape, dtype=torch.float32, device=device)
                for name, tensor in tensors_of(self._module).items()
            }
            x = torch.zeros(shape, dtype=torch.float32, device=device)
            try:
                StandIn(self._module, training=False)(zeros, x)
            except NotProvenError:
                raise
            except Exception:
                return False
        return True

    def check_shapes(self, hidden_size: int) -> None:
        """Checks every rank, training and evaluation, and rows that are one."""
        for rank, training in itertools.product(_RANKS, (False, True)):
            leading = (None,) * (rank - 1)
            self.norm(_Case((*leading, hidden_size), training=training))
        for rank in _RANKS:
            self.norm(_Case((*(1,) * (rank - 1), hidden_size)))

    def factors(self, hidden_size: int) -> tuple[Factor, ...]:
        """Returns the factors of the weight, the same for every shape."""
        self.check_shapes(hidden_size)
        return self._first.factors if self._first else ()

    def check_multiples(self, hidden_size: int) -> None:
        """Checks that rows of several weights are an error, as of several heads."""
        for factor, rank in itertools.product((2, 3), (2, 3, 4)):
            shape = (*_SIZES[: rank - 1], factor * hidden_size)
            if self.runs(shape):
                raise NotProvenError(
                    f"its hidden size is {hidden_size}, but it takes x of shape"
                    f" {list(shape)}"
                )

    def hidden_size_without_weight(self) -> int | None:
        """Returns the only size of the last dimension that it takes; None for any."""
        shape = getattr(self._module, "normalized_shape", None)
        if not isinstance(shape, Sequence) or len(shape) != 1:
            self.check_shapes(_HIDDEN_SIZES[0])
            for size in _HIDDEN_SIZES[1:]:
                self.norm(_Case((*_SIZES[:2], size)))
            return None
        (size,) = shape
        self.check_shapes(size)
        self.check_multiples(size)
        return int(size)

    def dtypes(self, hidden_size: int) -> dict[tuple[torch.dtype, torch.dtype], _Norm]:
        """Returns the norms by the dtypes of x and the weight."""
        norms = {}
        for x, weight in dtype_pairs(tensors_of(self._module)):
            case = _Case((*_SIZES[:2], hidden_size), x, weight)
            with contextlib.suppress(_UntraceableError):
                norms[x, weight] = self.norm(case)
        return norms


def _rule(norms: Mapping[tuple[torch.dtype, torch.dtype], _Norm]) -> str:
    """Returns the rule for the dtype of the result."""
    for rule in replacement.RESULT_DTYPES:
        if all(
            norm.dtype == replacement.result_dtype(rule, x, weight)
            for (x, weight), norm in norms.items()
        ):
            return rule
    table = ", ".join(f"{x} x {w}: {n.dtype}" for (x, w), n in norms.items())
    raise NotProvenError(
        f"the dtype of its result follows none of the known rules: {table}"
    )


def _epsilon(
    norms: Mapping[tuple[torch.dtype, torch.dtype], _Norm],
) -> float | None:
    """Returns the epsilon that all norms have; None for that of torch.nn.RMSNorm."""
    # Where it is computed in float64, it was not rounded to float32.
    epsilon = max(norms.items(), key=lambda i: i[0][0] == torch.float64)[1].epsilon
    if len({np.float32(norm.epsilon) for norm in norms.values()}) == 1:
        return epsilon
    prover = _Prover(torch.nn.RMSNorm(_HIDDEN_SIZES[0], device="meta"))
    default = {
        dtype: prover.norm(_Case((None, _HIDDEN_SIZES[0]), dtype, dtype)).epsilon
        for dtype in _DTYPES
    }
    if all(norm.epsilon == default[x] for (x, _), norm in norms.items()):
        return None
    table = ", ".join(f"{x}: {norm.epsilon}" for (x, _), norm in norms.items())
    raise NotProvenError(f"its epsilon depends on the dtype of x: {table}")


def _epsilon_buffer(module: torch.nn.Module, hidden_size: int) -> str | None:
    """Returns the name of the buffer that holds epsilon: twice it, twice epsilon."""
    case = _Case((None, None, hidden_size))
    before = _Prover(module).norm(case).epsilon
    for name, buffer in module.named_buffers():
        if buffer.numel() != 1 or not buffer.is_floating_point():
            continue
        changed = copy.copy(module)
        # A copy of the table, which the original shares.
        changed._buffers = {**module._buffers, name: 2 * buffer}  # noqa: SLF001
        if _Prover(changed).norm(case).epsilon > 1.5 * before:
            return name
    return None


def prove(module: torch.nn.Module) -> Proof:
    """Proves that the forward of a module is RMSNorm over the last dimension.

    Args:
      module: The module, without submodules. It is not changed, and its parameters are
        not read.

    Raises:
      NotProvenError: It is something else, or it cannot be told; with the reason.
    """
    _check_structure(module)
    argument = _argument(module)
    tensors = tensors_of(module)
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise NotProvenError(f"its {name} has the dtype {tensor.dtype}")
    sizes = {t.shape[0] for t in tensors.values() if t.dim() == 1}
    if tensors and not sizes:
        name, tensor = next(iter(tensors.items()))
        raise NotProvenError(
            f"its {name} has the shape {list(tensor.shape)}; expected [hidden size]"
        )
    prover = _Prover(module)
    hidden_size = size = max(sizes, default=0)
    if size and prover.factors(size):
        prover.check_multiples(size)
    else:
        hidden_size = prover.hidden_size_without_weight() or 0
        size = hidden_size or _HIDDEN_SIZES[0]
    norms = prover.dtypes(size)
    factors = next(iter(norms.values())).factors
    if len(factors) > 2:
        raise NotProvenError(
            f"expected at most two factors of its weight: {_product(factors)}"
        )
    return Proof(
        argument,
        hidden_size or None,
        _epsilon(norms),
        _epsilon_buffer(module, size),
        factors,
        _rule(norms),
    )
