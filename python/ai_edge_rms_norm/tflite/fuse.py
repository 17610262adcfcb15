"""Fuses RMSNorm in finished .tflite files.

Found are the chains of primitive operators that converters write,

    y = x * rsqrt(mean(x * x, axis=-1) + epsilon) * weight

    x²         MUL(x, x), SQUARE or POW(x, 2)
    mean       MEAN over the last axis
    + epsilon  ADD of a constant
    1 / rms    RSQRT, POW(·, -0.5), or SQRT with DIV(x, ·) or DIV(1, ·)
    * x        MUL, before or after the weight
    * weight   MUL; constant, computed (also DEQUANTIZE), or absent

with CAST anywhere and RESHAPE or EXPAND_DIMS of the row statistic in between, and the
composites `odml.rms_norm`. Everything else in the file stays as it is, bit for bit.
"""

import collections
import copy
import dataclasses

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm.tflite import edit, op_options
from ai_edge_rms_norm.tflite import encoding as encoding_lib
from ai_edge_rms_norm.tflite.encoding import Encoding

__all__ = ["FusionReport", "FusedNorm", "SkippedNorm", "fuse_model"]

_OP = schema.BuiltinOperator
_TYPE = schema.TensorType
_OPERATOR_NAMES = {v: k for k, v in vars(_OP).items() if k.isupper()}
_FLOAT_DTYPES = {_TYPE.FLOAT32: np.float32, _TYPE.FLOAT16: np.float16}
# Of the operators that may be part of an RMSNorm.
_NUM_INPUTS = {
    **dict.fromkeys((_OP.ADD, _OP.DIV, _OP.MEAN, _OP.MUL, _OP.POW), 2),
    **dict.fromkeys((_OP.CAST, _OP.DEQUANTIZE, _OP.EXPAND_DIMS, _OP.RESHAPE), 1),
    **dict.fromkeys((_OP.RSQRT, _OP.SQRT, _OP.SQUARE), 1),
}
_HALF_TYPES = (_TYPE.FLOAT16, _TYPE.BFLOAT16)
_FLOAT_TYPES = (_TYPE.FLOAT32, *_HALF_TYPES)
# Written by the converter when the order of operators is not that of the data; it
# names operators by index.
_CONTROL_DEPENDENCIES = b"model_control_dependencies"


@dataclasses.dataclass(frozen=True)
class FusedNorm:
    """One RMSNorm that was fused.

    Attributes:
      subgraph: Index of the subgraph in the original file.
      operators: Indices there of the operators that became one.
      output: Name of the tensor y.
      hidden_size: Size of the last dimension.
      epsilon: Added to the mean square; the shortest decimal that is the file's
        float32.
      has_weight: Whether y is scaled by a weight.
      source: `primitives` or `composite`.
    """

    subgraph: int
    operators: tuple[int, ...]
    output: str
    hidden_size: int
    epsilon: float
    has_weight: bool
    source: str


@dataclasses.dataclass(frozen=True)
class SkippedNorm:
    """What begins like an RMSNorm and was left alone.

    Attributes:
      subgraph: Index of the subgraph in the original file.
      operator: Index there of the operator that computes the root, or of the composite.
      reason: Why, in words.
    """

    subgraph: int
    operator: int
    reason: str


@dataclasses.dataclass(frozen=True)
class FusionReport:
    """What `fuse` did.

    Attributes:
      fused: The norms that became one operator each, in the order of the file.
      skipped: What was left alone, and why.
      operators_before: Number of operators in all subgraphs.
      operators_after: The same, of the result.
    """

    fused: tuple[FusedNorm, ...]
    skipped: tuple[SkippedNorm, ...]
    operators_before: int
    operators_after: int


class _NotFusibleError(Exception):
    """Begins like an RMSNorm; the message says why it is none, or not ours to take."""


@dataclasses.dataclass
class _Statistic:
    """1 / rms or rms of the rows of x, as far as the chain determines it.

    Attributes:
      factors: The one or two tensors whose product is x².
      shape: The shape of x².
    """

    factors: list[int]
    shape: list[int]
    epsilon: float
    chain: list[int]
    output: int
    inverted: bool


@dataclasses.dataclass
class _Match:
    x: int
    weight: int | None
    epsilon: float
    output: int
    chain: list[int]


def _without_leading_ones(shape: list[int]) -> list[int]:
    leading = next((i for i, size in enumerate(shape) if size != 1), len(shape))
    return shape[leading:]


def _shape(tensor: schema.TensorT) -> list[int]:
    """Returns the shape, with -1 for what is known at run time only."""
    shape = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    return [] if shape is None else [int(size) for size in shape]


class _Graph:
    """One subgraph with who produces and who uses each tensor."""

    def __init__(self, model: schema.ModelT, subgraph: schema.SubGraphT):
        self._model = model
        self._tensors = subgraph.tensors
        self.operators = subgraph.operators
        self._outputs = {int(i) for i in subgraph.outputs}
        self._producers: dict[int, int] = {}
        self._consumers: dict[int, list[int]] = collections.defaultdict(list)
        for o, operator in enumerate(subgraph.operators):
            for i in () if operator.outputs is None else operator.outputs:
                self._producers[int(i)] = o
            for i in {int(i) for i in self.inputs(o)}:
                self._consumers[i].append(o)
            self._check_operands(o)
        # Runtimes do not check the order either; a walk back could go in a circle.
        for tensor, users in self._consumers.items():
            if users[0] <= self._producers.get(tensor, -1):
                del self._producers[tensor]

    def _check_operands(self, operator: int) -> None:
        expected = _NUM_INPUTS.get(self.builtin(operator))
        inputs = self.inputs(operator)
        if expected and (
            sum(i >= 0 for i in inputs[:expected]) < expected
            or self.output(operator) < 0
        ):
            raise ValueError(
                f"operator {operator}, {_OPERATOR_NAMES[self.builtin(operator)]}, must"
                f" have an output and inputs from 0 to {expected - 1}, its inputs are"
                f" {inputs} and its output {self.output(operator)}"
            )

    def inputs(self, operator: int) -> list[int]:
        inputs = self.operators[operator].inputs
        return [] if inputs is None else [int(i) for i in inputs]

    def output(self, operator: int) -> int:
        """Returns the first output; -1 if there is none."""
        outputs = self.operators[operator].outputs
        return int(outputs[0]) if outputs is not None and len(outputs) else -1

    def builtin(self, operator: int) -> int:
        return self._model.operatorCodes[
            self.operators[operator].opcodeIndex
        ].builtinCode

    def name(self, tensor: int) -> str:
        name = self._tensors[tensor].name
        return name.decode(errors="replace") if isinstance(name, bytes) else name or ""

    def type(self, tensor: int) -> int:
        return self._tensors[tensor].type

    def shape(self, tensor: int) -> list[int]:
        return _shape(self._tensors[tensor])

    def consumers(self, tensor: int) -> list[int]:
        return self._consumers.get(tensor, [])

    def producer(self, tensor: int) -> int | None:
        return self._producers.get(tensor)

    def is_output(self, tensor: int) -> bool:
        return tensor in self._outputs

    def is_constant(self, tensor: int) -> bool:
        return edit.constant_data(self._model, self._tensors[tensor]) is not None

    def produced_by(self, tensor: int, *builtins: int) -> int | None:
        """Returns the producer of a tensor if it is one of these operators."""
        operator = self._producers.get(tensor)
        if operator is None or self.builtin(operator) not in builtins:
            return None
        options = self.operators[operator].builtinOptions
        if getattr(options, "fusedActivationFunction", 0):
            return None
        return operator

    def scalar(self, tensor: int) -> float | None:
        """Returns the value of a constant of one element and floating type."""
        tensor = self.stored(tensor)
        dtype = _FLOAT_DTYPES.get(self.type(tensor))
        data = edit.constant_data(self._model, self._tensors[tensor])
        if dtype is None or data is None or len(data) != np.dtype(dtype).itemsize:
            return None
        # The shortest decimal: 1e-06 for the float32 that is next to it.
        return float(str(np.float32(np.frombuffer(bytes(data), dtype)[0])))

    def integers(self, tensor: int) -> list[int] | None:
        data = edit.constant_data(self._model, self._tensors[tensor])
        if data is None or self.type(tensor) != _TYPE.INT32:
            return None
        return np.frombuffer(bytes(data), np.int32).tolist()

    def versions(self, tensor: int) -> list[int]:
        """Returns a tensor and what it was, cast from a narrower float and reshaped.

        Of the reshapes, those that add or take leading dimensions of 1: converters
        leave them out before an operator that broadcasts.
        """
        versions = [tensor]
        while (o := self.produced_by(versions[-1], _OP.CAST, _OP.RESHAPE)) is not None:
            before = self.inputs(o)[0]
            if self.builtin(o) == _OP.CAST:
                is_version = self.type(before) in _HALF_TYPES
            else:
                is_version = _without_leading_ones(
                    self.shape(before)
                ) == _without_leading_ones(self.shape(versions[-1]))
            if not is_version:
                break
            versions.append(before)
        return versions

    def source(self, tensor: int) -> int:
        return self.versions(tensor)[-1]

    # What follows matches an RMSNorm around the operator that computes the root.

    def _skip_back(self, tensor: int, chain: list[int], *builtins: int) -> int:
        while (o := self.produced_by(tensor, *builtins)) is not None:
            before = self.inputs(o)[0]
            if self.type(before) not in _FLOAT_TYPES:
                break
            chain.append(o)
            tensor = before
        return tensor

    def _squared(self, tensor: int) -> tuple[list[int], int] | None:
        """Returns the factors and the operator if a tensor is x²."""
        o = self.produced_by(tensor, _OP.MUL, _OP.SQUARE, _OP.POW)
        if o is None:
            return None
        x, *other = self.inputs(o)
        if self.builtin(o) == _OP.MUL and self.source(x) != self.source(other[0]):
            return None
        if self.builtin(o) == _OP.POW and self.scalar(other[0]) != 2.0:
            return None
        return [x, *other] if self.builtin(o) == _OP.MUL else [x], o

    def _statistic(self, root: int) -> _Statistic | None:
        """Matches root(mean(x²) + epsilon); None if it does not begin like that."""
        inverted = self.builtin(root) == _OP.RSQRT
        if self.builtin(root) == _OP.POW:
            exponent = self.scalar(self.inputs(root)[1])
            if exponent not in (0.5, -0.5):
                return None
            inverted = exponent < 0
        chain = [root]
        reshapes = (_OP.RESHAPE, _OP.EXPAND_DIMS, _OP.CAST)
        tensor = self._skip_back(self.inputs(root)[0], chain, *reshapes)
        add = self.produced_by(tensor, _OP.ADD)
        if add is None:
            return None
        chain.append(add)
        mean_square, shift = self.inputs(add)
        if self.is_constant(self.stored(mean_square)):
            mean_square, shift = shift, mean_square
        if not self.is_constant(self.stored(shift)):
            return None
        tensor = self._skip_back(mean_square, chain, *reshapes)
        mean = self.produced_by(tensor, _OP.MEAN)
        if mean is None:
            return None
        chain.append(mean)
        tensor, axes = self.inputs(mean)
        squared = self._squared(self._skip_back(tensor, chain, _OP.CAST))
        if squared is None:
            return None
        factors, square = squared
        chain.append(square)

        shape = self.shape(self.output(square))
        rank = len(shape)
        axes = self.integers(axes)
        if not rank or axes is None or [a % rank for a in axes] != [rank - 1]:
            raise _NotFusibleError(
                f"the mean is over the axes {axes} of {shape}, not over the last one"
            )
        epsilon = self.scalar(shift)
        if epsilon is None:
            raise _NotFusibleError(
                f"epsilon, {self.name(shift)!r}, is no scalar of type float32 or"
                f" float16; its shape is {self.shape(shift)}"
            )
        if not (np.isfinite(epsilon) and epsilon > 0):
            raise _NotFusibleError(f"epsilon must be finite and > 0, it is {epsilon}")
        return _Statistic(factors, shape, epsilon, chain, self.output(root), inverted)

    def _is_weight(self, tensor: int, hidden_size: int) -> bool:
        *leading, last = self.shape(tensor) or [0]
        if (
            last != hidden_size
            or any(size != 1 for size in leading)
            or self.type(tensor) not in _FLOAT_TYPES
            or self._tensors[tensor].sparsity is not None
        ):
            return False
        # What is computed cannot be given another rank, but a constant can.
        return not leading or self.is_constant(self.stored(tensor))

    def stored(self, tensor: int) -> int:
        """Returns what a dequantized float16 constant is stored as."""
        o = self.produced_by(tensor, _OP.DEQUANTIZE)
        if o is None or self.type(self.inputs(o)[0]) != _TYPE.FLOAT16:
            return tensor
        return self.inputs(o)[0]

    def _use(self, tensor: int) -> int | None:
        """Returns the only operator that uses a tensor that nothing else needs."""
        users = self.consumers(tensor)
        return users[0] if len(users) == 1 and not self.is_output(tensor) else None

    def _why_kept(self, tensor: int, allowed: set[int]) -> str | None:
        """Returns why an intermediate cannot go away, None if it can."""
        if self.is_output(tensor):
            return f"the intermediate {self.name(tensor)!r} is an output of the graph"
        for user in self.consumers(tensor):
            if user not in allowed:
                return (
                    f"the intermediate {self.name(tensor)!r} is used by operator {user}"
                    f" ({_OPERATOR_NAMES.get(self.builtin(user), '?')}), too"
                )
        return None

    def match(self, root: int) -> _Match | None:
        """Matches the RMSNorm whose root an operator computes.

        Returns:
          The match; None if this is not the root of a mean square plus epsilon.

        Raises:
          _NotFusibleError: It is, but not fusible.
        """
        statistic = self._statistic(root)
        if statistic is None:
            return None
        shape = statistic.shape
        hidden_size = shape[-1]
        if hidden_size <= 0:
            raise _NotFusibleError(f"the last dimension of {shape} is not static")
        source = self.source(statistic.factors[0])
        # In which types x is at hand, the first one preferred.
        variants = {}
        for factor in statistic.factors:
            for x in self.versions(factor):
                if self.type(x) in _FLOAT_TYPES and self.shape(x) == shape:
                    variants.setdefault(self.type(x), x)
        if not variants or self._tensors[source].isVariable:
            raise _NotFusibleError(
                f"x, {self.name(source)!r}, is no float32, float16 or bfloat16"
                f" activation of shape {shape}"
            )

        chain, tensor = list(statistic.chain), statistic.output
        inverted, has_x, weight = statistic.inverted, False, None
        best = None
        why = self._why_kept(tensor, set())
        while (user := self._use(tensor)) is not None:
            builtin = self.builtin(user)
            if self.producer(self.output(user)) != user:
                why = f"operator {user} gives nothing, or comes after what reads it"
                break
            if self.produced_by(self.output(user), builtin) is None:
                why = f"operator {user} has a fused activation"
                break
            operands = self.inputs(user)
            why = (
                f"the statistic goes into operator {user}"
                f" ({_OPERATOR_NAMES.get(builtin, '?')}), not into x / rms(x)"
            )
            if builtin in (_OP.RESHAPE, _OP.EXPAND_DIMS):
                if has_x or weight is not None:
                    break
            elif builtin == _OP.CAST:
                if self.type(self.output(user)) not in _FLOAT_TYPES:
                    break
            elif builtin == _OP.DIV and not inverted and operands[1] == tensor:
                inverted = True
                if self.source(operands[0]) == source:
                    why = self._why_no_row(tensor, shape)
                    if why:
                        break
                    has_x = True
                elif self.scalar(operands[0]) != 1.0:
                    break
            elif builtin == _OP.MUL and inverted:
                other = operands[operands[0] == tensor]
                if other == tensor:
                    break
                if not has_x:
                    why = self._why_no_row(tensor, shape, weight is not None)
                    if why:
                        break
                    why = f"operator {user} multiplies 1 / rms(x) by something else"
                if not has_x and self.source(other) == source:
                    has_x = True
                elif weight is None and self._is_weight(other, hidden_size):
                    weight = other
                elif not has_x and weight is None:
                    scaled = self._scaled(other, source, hidden_size)
                    if scaled is None:
                        break
                    product, weight = scaled
                    chain.append(product)
                    has_x = True
                else:
                    break
            else:
                break
            chain.append(user)
            tensor = self.output(user)
            if has_x and self.shape(tensor) == shape and self.type(tensor) in variants:
                x = variants[self.type(tensor)]
                best = _Match(x, weight, statistic.epsilon, tensor, list(chain))
            why = self._why_kept(tensor, set())
        if best is None:
            raise _NotFusibleError(why or "it is not multiplied by x")
        inside = set(best.chain)
        for o in best.chain:
            if self.output(o) != best.output:
                why = self._why_kept(self.output(o), inside)
                if why:
                    raise _NotFusibleError(why)
        best.chain.sort()
        return best

    def _why_no_row(self, tensor: int, shape: list[int], scaled: bool = False):
        """Returns why a statistic is not one number per row of x, None if it is."""
        expected = [*shape[:-1], shape[-1] if scaled else 1]
        if self.shape(tensor) == expected:
            return None
        return f"the statistic has shape {self.shape(tensor)}, not {expected}"

    def _scaled(self, tensor: int, source: int, hidden_size: int):
        """Returns the operator and the weight if a tensor is x * weight."""
        o = self.produced_by(tensor, _OP.MUL)
        if o is None:
            return None
        for x, weight in (self.inputs(o), self.inputs(o)[::-1]):
            if self.source(x) == source and self._is_weight(weight, hidden_size):
                return o, weight
        return None


def _weight_operators(
    model: schema.ModelT, subgraph: schema.SubGraphT, graph: _Graph, weight: int
) -> tuple[int, list[schema.OperatorT]]:
    """Returns the weight as a tensor of one dimension and what computes it."""
    if len(graph.shape(weight)) == 1:
        return weight, []

    def flattened(tensor: int) -> int:
        flat = copy.copy(subgraph.tensors[tensor])
        flat.shape, flat.shapeSignature = [int(flat.shape[-1])], None
        flat.name = f"{graph.name(tensor)}/flat".encode()
        subgraph.tensors.append(flat)
        return len(subgraph.tensors) - 1

    stored = graph.stored(weight)
    if stored == weight:
        return flattened(weight), []
    dequantize = copy.copy(graph.operators[graph.produced_by(weight, _OP.DEQUANTIZE)])
    dequantize.inputs = [flattened(stored)]
    dequantize.outputs = [flattened(weight)]
    return dequantize.outputs[0], [dequantize]


def _remove_unused(
    subgraph: schema.SubGraphT, graph: _Graph, candidates: set[int]
) -> None:
    """Removes those of the candidates that nothing reads, last ones first."""
    for o in sorted(candidates, reverse=True):
        used = {int(i) for i in subgraph.outputs}
        for operator in subgraph.operators:
            used.update(() if operator.inputs is None else map(int, operator.inputs))
        if graph.output(o) not in used:
            unused = graph.operators[o]
            subgraph.operators = [x for x in subgraph.operators if x is not unused]


def _fuse_subgraph(
    model: schema.ModelT, index: int
) -> tuple[list[FusedNorm], list[SkippedNorm]]:
    subgraph = model.subgraphs[index]
    graph = _Graph(model, subgraph)
    original = list(subgraph.operators)
    fused, skipped, matches = [], [], {}
    taken: set[int] = set()
    for o in range(len(original)):
        if graph.builtin(o) not in (_OP.RSQRT, _OP.SQRT, _OP.POW):
            continue
        try:
            match = graph.match(o)
        except _NotFusibleError as error:
            skipped.append(SkippedNorm(index, o, str(error)))
            continue
        if match is not None and taken.isdisjoint(match.chain):
            taken.update(match.chain)
            matches[graph.producer(match.output)] = match
    if not matches:
        return fused, skipped

    touched = set()
    operators = []
    for o, operator in enumerate(original):
        match = matches.get(o)
        if match is None:
            if o not in taken:
                operators.append(operator)
            continue
        inputs, before = [match.x], []
        if match.weight is not None:
            weight, before = _weight_operators(model, subgraph, graph, match.weight)
            inputs.append(weight)
        operators += before
        operators.append(
            schema.OperatorT(
                opcodeIndex=edit.intern_operator_code(
                    model, _OP.CUSTOM, op_options.RMS_NORM
                ),
                inputs=inputs,
                outputs=[match.output],
                customOptions=np.frombuffer(
                    op_options.encode_custom_options(match.epsilon), np.uint8
                ),
            )
        )
        fused.append(
            FusedNorm(
                index,
                tuple(match.chain),
                graph.name(match.output),
                graph.shape(match.x)[-1],
                match.epsilon,
                match.weight is not None,
                "primitives",
            )
        )
        for c in match.chain:
            touched.update(i for i in graph.inputs(c) if i >= 0)
            touched.add(graph.output(c))
    subgraph.operators = operators
    # What only the chains may have read: x in a wider type, the weight.
    candidates = {
        o
        for o in range(len(original))
        if o not in taken
        and graph.builtin(o) in (_OP.CAST, _OP.DEQUANTIZE, _OP.RESHAPE)
        and graph.output(o) in touched
    }
    _remove_unused(subgraph, graph, candidates)
    for o in candidates:
        touched.update(graph.inputs(o))
    used = {int(i) for i in (*subgraph.inputs, *subgraph.outputs)}
    for operator in subgraph.operators:
        for tensors in (operator.inputs, operator.outputs, operator.intermediates):
            used.update(() if tensors is None else map(int, tensors))
    edit.drop_tensors(model, index, touched - used)
    return fused, skipped


def _check_order(model: schema.ModelT) -> None:
    names = [entry.name for entry in model.metadata or ()]
    if _CONTROL_DEPENDENCIES in names:
        raise ValueError(
            "the model has the metadata entry model_control_dependencies, which refers"
            " to operators by index; fusing would make it wrong"
        )


def fuse_model(
    model: schema.ModelT, encoding: Encoding | str = Encoding.CUSTOM
) -> FusionReport:
    """Fuses the norms of an object tree, in place; otherwise like `fuse`."""
    encoding = Encoding(encoding)
    _check_order(model)
    before = sum(len(subgraph.operators) for subgraph in model.subgraphs)
    composites = {
        (node.subgraph, node.operator): node
        for node in encoding_lib.find_ops(model)
        if node.encoding == Encoding.COMPOSITE
    }
    fused = []
    skipped = [
        SkippedNorm(s, o, "the composite odml.rms_norm has no attribute epsilon > 0")
        for s, subgraph in enumerate(model.subgraphs)
        for o, operator in enumerate(subgraph.operators)
        if (s, o) not in composites
        and encoding_lib.is_rms_norm_composite(model, operator)
    ]
    if encoding != Encoding.COMPOSITE:
        verified = encoding_lib.rms_norm_composites(model)
        for (s, o), node in composites.items():
            subgraph = model.subgraphs[s]
            if (s, o) not in verified:
                reason = "the composite odml.rms_norm computes something else inside"
                skipped.append(SkippedNorm(s, o, reason))
                continue
            graph = _Graph(model, subgraph)
            fused.append(
                FusedNorm(
                    s,
                    (o,),
                    graph.name(node.outputs[0]),
                    graph.shape(node.inputs[0])[-1],
                    node.epsilon,
                    len(node.inputs) > 1,
                    "composite",
                )
            )
    # The inside of a composite is what it means, to compilers that know its name.
    decompositions = {
        operator.builtinOptions2.decompositionSubgraphIndex
        for subgraph in model.subgraphs
        for operator in subgraph.operators
        if isinstance(operator.builtinOptions2, schema.StableHLOCompositeOptionsT)
    }
    for index in range(len(model.subgraphs)):
        if index not in decompositions:
            of_subgraph = _fuse_subgraph(model, index)
            fused += of_subgraph[0]
            skipped += of_subgraph[1]
    encoding_lib.translate_model(model, encoding)
    edit.sort_operator_codes(model)
    return FusionReport(
        tuple(sorted(fused, key=lambda f: (f.subgraph, f.operators))),
        tuple(sorted(skipped, key=lambda r: (r.subgraph, r.operator))),
        before,
        sum(len(subgraph.operators) for subgraph in model.subgraphs),
    )
