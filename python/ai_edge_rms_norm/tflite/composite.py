"""RMSNorm of plain TFLite operators: builds it, and judges what composites hold.

Range-safe, with c = sqrt(epsilon) and n the size of the last dimension:

    m = max(max(abs(x)), c)                       one number per row
    z = x / m
    y = z * rsqrt(mean(z * z) + (c / m)²) * weight

In real arithmetic that is x / sqrt(mean(x * x) + epsilon) * weight, and every
intermediate but y lies in [-1, sqrt(n)], mean and sum of squares in [0, n]: no row
overflows or vanishes in float16, in which accelerators compute by default.

Plain:

    y = x * rsqrt(mean(x * x) + epsilon) * weight
"""

import copy
import dataclasses
import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm import pattern
from ai_edge_rms_norm.tflite import edit
from ai_edge_rms_norm.tflite.graph import Graph, shape_of, type_name

__all__ = ["ONE", "Judge", "build", "build_subgraph", "is_ones"]

_OP = schema.BuiltinOperator
_OPTIONS = schema.BuiltinOptions
_FLOAT32 = schema.TensorType.FLOAT32
# 1.0, little-endian.
ONE = {
    _FLOAT32: np.float32(1).tobytes(),
    schema.TensorType.FLOAT16: np.float16(1).tobytes(),
    schema.TensorType.BFLOAT16: b"\x80\x3f",
}
# Kinds of the grammar that only prepare an operand.
_PREPARATIONS = ("cast", "reshape", "expand")
# Of epsilon as attribute and as the square of a float32, twice rounded.
_EPSILON_TOLERANCE = 2.0**-22


def is_ones(model: schema.ModelT, tensor: schema.TensorT) -> bool:
    """Whether a tensor is a constant of ones, of type float32 or a half."""
    data = edit.constant_data(model, tensor)
    one = ONE.get(tensor.type)
    if data is None or one is None:
        return False
    return bytes(data) == one * (len(data) // len(one))


class _Builder:
    """Appends tensors and buffers to a model, and collects operators."""

    def __init__(
        self, model: schema.ModelT, subgraph: schema.SubGraphT, prefix: str
    ) -> None:
        self._model = model
        self._tensors = subgraph.tensors
        self._prefix = prefix
        self.operators: list[schema.OperatorT] = []

    def _tensor(self, like: schema.TensorT, name: str, **changes: Any) -> int:
        tensor = copy.copy(like)
        tensor.name = f"{self._prefix}/{name}".encode()
        tensor.buffer, tensor.quantization, tensor.isVariable = 0, None, False
        vars(tensor).update(changes)
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def constant(self, value: np.ndarray, tensor_type: int, name: str) -> int:
        buffer = edit.append_buffer(
            self._model, np.frombuffer(value.tobytes(), np.uint8)
        )
        tensor = schema.TensorT(shape=list(value.shape), type=tensor_type)
        return self._tensor(tensor, name, buffer=buffer)

    def apply(
        self,
        builtin: str,
        *inputs: int,
        options: str | None = None,
        name: str = "",
        output: int | None = None,
        shape_of: int | None = None,
        **fields: Any,
    ) -> int:
        """Appends an operator; its output is like `shape_of`, else input 0."""
        if output is None:
            like = self._tensors[inputs[0] if shape_of is None else shape_of]
            output = self._tensor(like, name)
        values = None
        if options is not None:
            values = getattr(schema, f"{options}T")(**fields)
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=edit.intern_operator_code(
                    self._model, getattr(_OP, builtin)
                ),
                inputs=list(inputs),
                outputs=[output],
                builtinOptions=values,
                builtinOptionsType=getattr(_OPTIONS, options) if options else 0,
            )
        )
        return output

    def mul(self, a: int, b: int, name: str, output: int | None = None) -> int:
        return self.apply("MUL", a, b, options="MulOptions", name=name, output=output)

    def _div(self, a: int, b: int, name: str, shape_of: int) -> int:
        return self.apply(
            "DIV", a, b, options="DivOptions", name=name, shape_of=shape_of
        )

    def _reduce(self, builtin: str, a: int, axis: int, name: str) -> int:
        tensor = self._tensors[a]
        signature = tensor.shapeSignature
        row = self._tensor(
            tensor,
            name,
            shape=[*tensor.shape[:-1], 1],
            shapeSignature=None if signature is None else [*signature[:-1], 1],
        )
        return self.apply(
            builtin, a, axis, options="ReducerOptions", output=row, keepDims=True
        )

    def cast(self, source: int, to: int, name: str, output: int | None = None) -> int:
        """Returns the tensor in type `to`; itself if it has it and no output is set."""
        before = self._tensors[source].type
        if before == to and output is None:
            return source
        if output is None:
            output = self._tensor(self._tensors[source], name, type=to)
        return self.apply(
            "CAST",
            source,
            options="CastOptions",
            output=output,
            inDataType=before,
            outDataType=to,
        )

    def _axis(self, x: int) -> int:
        axis = np.array([len(self._tensors[x].shape) - 1], np.int32)
        return self.constant(axis, schema.TensorType.INT32, "axis")

    def _scalar(self, value: float, name: str, epsilon: float) -> int:
        with np.errstate(over="ignore"):
            stored = np.array(value, np.float32)
        if not (np.isfinite(stored) and stored > 0):
            raise ValueError(
                f"epsilon {epsilon} cannot be written: {name} {value} is not a finite"
                " float32 > 0"
            )
        return self.constant(stored, _FLOAT32, f"{name}={epsilon!r}")

    def normalized(self, x: int, epsilon: float, range_safe: bool) -> tuple[int, int]:
        """Returns the two factors of x / rms(x), x of type float32."""
        axis = self._axis(x)
        if range_safe:
            root = self._scalar(math.sqrt(epsilon), "sqrt_epsilon", epsilon)
            absolute = self.apply("ABS", x, name="abs")
            scale = self.apply(
                "MAXIMUM",
                self._reduce("REDUCE_MAX", absolute, axis, "max_abs"),
                root,
                options="MaximumMinimumOptions",
                name="scale",
            )
            x = self._div(x, scale, "x_over_scale", x)
        mean = self._reduce("MEAN", self.mul(x, x, "square"), axis, "mean_square")
        if range_safe:
            shift = self._div(root, scale, "sqrt_epsilon_over_scale", scale)
            shift = self.mul(shift, shift, "scaled_epsilon")
        else:
            shift = self._scalar(epsilon, "epsilon", epsilon)
        shifted = self.apply(
            "ADD", mean, shift, options="AddOptions", name="mean_square_plus_epsilon"
        )
        return x, self.apply("RSQRT", shifted, name="inverse_rms")


def _layer(result: str) -> str:
    """Returns what the names of a norm's tensors begin with, by the name of its result.

    litert-torch ends names with ; and a number. Behind that, viewers would take the
    rest as another name, and put the operators outside of their layer.
    """
    name, _, number = result.rpartition(";")
    if name and (not number or number.isdecimal()):
        result = f"{name}_{number}" if number else name
    return result or "rms_norm"


def build(
    model: schema.ModelT,
    subgraph: schema.SubGraphT,
    x: int,
    weight: int | None,
    epsilon: float,
    y: int,
    *,
    range_safe: bool = True,
) -> list[schema.OperatorT]:
    """Appends the tensors of y = rms_norm(x, weight, epsilon) to a subgraph.

    Half-precision operands are cast to float32: TFLite has no half-precision
    arithmetic on the CPU.

    Args:
      model: The model, which gets buffers and operator codes.
      subgraph: The subgraph, which gets tensors.
      x: Index of a float32, float16 or bfloat16 tensor [..., n].
      weight: Index of a tensor [n] of one of these types, or None.
      epsilon: Added to the mean square. Its constant has it in its name, exactly,
        since float32 holds neither it nor the square of its root.
      y: Index of the result, with x's shape and type.
      range_safe: Whether to build the range-safe form, else the plain one.

    Returns:
      The operators, in execution order; they are not in the subgraph yet.

    Raises:
      ValueError: Epsilon, or its root, is not a finite float32 > 0.
    """
    tensors = subgraph.tensors
    builder = _Builder(model, subgraph, _layer(edit.text(tensors[y].name)))
    is_half = tensors[y].type != _FLOAT32
    wide = builder.cast(x, _FLOAT32, "x_float32")
    if weight is not None:
        weight = builder.cast(weight, _FLOAT32, "weight_float32")
    result = None if is_half else y
    factors = builder.normalized(wide, epsilon, range_safe)
    if weight is None:
        product = builder.mul(*factors, "normalized", result)
    else:
        product = builder.mul(*factors, "normalized")
        product = builder.mul(product, weight, "y_float32", result)
    if is_half:
        builder.cast(product, tensors[y].type, "y", y)
    return builder.operators


def build_subgraph(
    model: schema.ModelT,
    name: str,
    x: schema.TensorT,
    weight: schema.TensorT,
    epsilon: float,
    *,
    range_safe: bool = True,
) -> int:
    """Appends a subgraph y = rms_norm(x, weight, epsilon), what a composite refers to.

    Args:
      model: The model, which gets the subgraph.
      name: The name of the subgraph.
      x: The tensor that the composite is applied to.
      weight: Its weight, of one dimension.
      epsilon: As for `build`.
      range_safe: As for `build`.

    Returns:
      The index of the subgraph; its inputs are x and weight.

    Raises:
      ValueError: As for `build`.
    """
    subgraph = schema.SubGraphT(
        tensors=[], inputs=[0, 1], outputs=[2], operators=[], name=name.encode()
    )
    for like, suffix in ((x, "x"), (weight, "weight"), (x, "y")):
        tensor = copy.copy(like)
        tensor.name = f"{name}/{suffix}".encode()
        tensor.buffer, tensor.quantization, tensor.isVariable = 0, None, False
        subgraph.tensors.append(tensor)
    subgraph.operators = build(model, subgraph, 0, 1, epsilon, 2, range_safe=range_safe)
    model.subgraphs.append(subgraph)
    return len(model.subgraphs) - 1


def _describe(tensor: schema.TensorT) -> str:
    return f"{type_name(tensor.type)} {shape_of(tensor)}"


class _NotRmsNormError(Exception):
    """A composite is not an RMSNorm; the message says why."""


@dataclasses.dataclass(frozen=True)
class _Inside:
    """The RMSNorm of a decomposition, whichever operators refer to it."""

    graph: Graph
    match: pattern.Match[int]


class Judge:
    """Says which composites are the RMSNorm of their operands.

    The grammar decides; nothing is executed. A decomposition is looked at once,
    however many operators refer to it.
    """

    def __init__(self, model: schema.ModelT) -> None:
        self._model = model
        self._inside: dict[int, _Inside | _NotRmsNormError] = {}

    def why_not(
        self, subgraph: schema.SubGraphT, operator: schema.OperatorT, epsilon: float
    ) -> str | None:
        """Returns why a composite is not rms_norm(x[, weight], epsilon); None if so.

        Args:
          subgraph: That of the operator.
          operator: A STABLEHLO_COMPOSITE.
          epsilon: Its attribute.
        """
        try:
            inside = self._look(operator.builtinOptions2.decompositionSubgraphIndex)
            self._check_operands(subgraph, operator, inside.graph)
            if not math.isclose(
                epsilon, inside.match.epsilon, rel_tol=_EPSILON_TOLERANCE
            ):
                raise _NotRmsNormError(
                    f"its epsilon is {inside.match.epsilon}, the attribute {epsilon}"
                )
        except _NotRmsNormError as error:
            return str(error)
        return None

    def is_range_safe(self, operator: schema.OperatorT) -> bool:
        """Whether the decomposition of a composite that is a norm is range-safe."""
        inside = self._look(operator.builtinOptions2.decompositionSubgraphIndex)
        return inside.match.range_safe

    def _look(self, index: int) -> _Inside:
        if index not in self._inside:
            try:
                self._inside[index] = self._look_inside(index)
            except _NotRmsNormError as error:
                self._inside[index] = error
        inside = self._inside[index]
        if isinstance(inside, _NotRmsNormError):
            raise inside
        return inside

    def _look_inside(self, index: int) -> _Inside:
        if not 0 <= index < len(self._model.subgraphs):
            raise _NotRmsNormError(f"it refers to subgraph {index}")
        inner = self._model.subgraphs[index]
        if len(inner.inputs) not in (1, 2) or len(inner.outputs) != 1:
            raise _NotRmsNormError(
                f"it has {len(inner.inputs)} inputs and {len(inner.outputs)} outputs"
            )
        try:
            graph = Graph(self._model, index)
        except ValueError as error:
            raise _NotRmsNormError(str(error)) from error
        matches, refusals = pattern.find(graph)
        if len(matches) != 1 or refusals:
            reasons = [refusal.reason for refusal in refusals]
            raise _NotRmsNormError(
                "; ".join(reasons) or f"it holds {len(matches)} norms, not one"
            )
        (match,) = matches
        x, *weight = (int(i) for i in inner.inputs)
        self._check_weight(graph, match, x, weight)
        if match.source != x:
            raise _NotRmsNormError("the norm is not that of its first input")
        if match.y != int(inner.outputs[0]):
            raise _NotRmsNormError("its output is not that of the norm")
        described = [_describe(graph.tensor(i)) for i in (x, match.y)]
        if described[0] != described[1]:
            raise _NotRmsNormError(
                f"its first input is {described[0]}, its output {described[1]}"
            )
        return _Inside(graph, match)

    def _check_weight(
        self, graph: Graph, match: pattern.Match[int], x: int, weight: list[int]
    ) -> None:
        """Raises if the weight is another one, or an operator does something else."""
        # The weight, or a constant, in another type or with dimensions of 1.
        prepared = set(weight)
        inside = set(match.ops)
        sources = {x}
        for op in graph.ops():
            if op in inside:
                continue
            canonical, before = graph.canonical(op), graph.inputs(op)[:1]
            is_kept = canonical is not None and canonical[0] in _PREPARATIONS
            if not is_kept or not graph.widens(before[0], graph.output(op)):
                raise _NotRmsNormError(f"it computes more, in {graph.describe_op(op)}")
            if before[0] in sources:
                sources.add(graph.output(op))
            elif before[0] in prepared:
                prepared.add(graph.output(op))
            elif not graph.is_constant(before[0]):
                raise _NotRmsNormError(f"it computes more, in {graph.describe_op(op)}")
        factor = match.weights[0] if match.weights else None
        if weight and factor not in prepared:
            raise _NotRmsNormError("its second input is not the weight of the norm")
        if weight or factor is None:
            return
        if not is_ones(self._model, graph.tensor(graph.stored(factor))):
            raise _NotRmsNormError("its weight is not an input")

    @staticmethod
    def _check_operands(
        subgraph: schema.SubGraphT, operator: schema.OperatorT, inner: Graph
    ) -> None:
        """Raises if operands and the interface of a decomposition differ."""
        for kind, outer, inside in (
            ("input", operator.inputs, inner.interface[0]),
            ("output", operator.outputs, inner.interface[1]),
        ):
            outer = [] if outer is None else [int(i) for i in outer]
            if len(outer) != len(inside) or min(outer) < 0:
                raise _NotRmsNormError(
                    f"it has {kind}s {outer}, its decomposition {len(inside)}"
                )
            for i, (a, b) in enumerate(zip(outer, inside, strict=True)):
                described = [_describe(subgraph.tensors[a]), _describe(inner.tensor(b))]
                if described[0] != described[1]:
                    raise _NotRmsNormError(
                        f"{kind} {i} is {described[0]}, that of its decomposition"
                        f" {described[1]}"
                    )
