"""How the operators are encoded in a .tflite, and the translation between encodings.

`stablehlo_custom_call`: builtin STABLEHLO_CUSTOM_CALL (173), epsilon as JSON in
  backend_config. The converter writes it.
`custom`: builtin CUSTOM (32), the call target as custom_code, epsilon in a FlexBuffers
  map. Runtimes hand it to a delegate or a registered kernel.
`composite`: builtin STABLEHLO_COMPOSITE (206) `odml.rms_norm` with a decomposition
  into plain operators, for compilers that know the name and runtimes that do not.
`ml_drift`: builtin CUSTOM `custom_call.RmsNorm`, options as `custom`: one kernel on
  LiteRT's GPU accelerator, for x of 2 to 4 dimensions and a constant weight.
`decomposed`: plain operators, in a form whose intermediates fit float16 (`composite`).

In the last three add_rms_norm becomes ADD and a norm. Composite and `ml_drift` always
have a weight, of ones if there is none.
"""

import collections
import copy
import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import NoReturn

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from ai_edge_rms_norm import pattern
from ai_edge_rms_norm.tflite import composite, edit, flatbuffer, op_options
from ai_edge_rms_norm.tflite.graph import Graph, shape_of, type_name

__all__ = [
    "Encoding",
    "RmsNormOp",
    "find_ops",
    "SkippedNorm",
    "Survey",
    "is_rms_norm_composite",
    "is_written",
    "rewrite",
    "translate",
    "translate_model",
    "why_not",
]

_COMPOSITE_NAME = "odml.rms_norm"
# The name that LiteRT's GPU accelerator, ML Drift, knows; x, weight to y.
_ML_DRIFT_NAME = "custom_call.RmsNorm"
# The ranks of x for which it was run (docs/backends.md).
_ML_DRIFT_RANKS = range(2, 5)
_OP = schema.BuiltinOperator
_OPTIONS = schema.BuiltinOptions
_OPTIONS_2 = schema.BuiltinOptions2
# The converter repeats has_side_effect, an attribute that it does not know to be
# stored in a field of its own already.
_CUSTOM_ATTRIBUTES = flexbuffers.Dumps({"has_side_effect": False})


class Encoding(str, enum.Enum):
    """How RMSNorm is encoded; the value is its name in every interface."""

    STABLEHLO_CUSTOM_CALL = "stablehlo_custom_call"
    CUSTOM = "custom"
    COMPOSITE = "composite"
    ML_DRIFT = "ml_drift"
    DECOMPOSED = "decomposed"

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        names = ", ".join(repr(e.value) for e in cls)
        raise ValueError(f"encoding must be one of {names}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class RmsNormOp:
    """One RMSNorm in a model.

    Attributes:
      subgraph: Index of its subgraph.
      operator: Index of the operator that computes y.
      encoding: How it is encoded.
      call_target: `ai_edge_torch.rms_norm` or `ai_edge_torch.add_rms_norm`.
      epsilon: As stored, a float64; of a constant, the shortest decimal that is the
        file's float32, or what its name says.
      inputs: Tensor indices x[, weight] or x, residual[, weight].
      outputs: Tensor indices y or total, y.
      operators: Indices of all operators that it consists of; one unless decomposed.
    """

    subgraph: int
    operator: int
    encoding: Encoding
    call_target: str
    epsilon: float
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operators: tuple[int, ...]


# In which add_rms_norm is one operator, and a norm may have no weight.
_ONE_OPERATOR = (Encoding.STABLEHLO_CUSTOM_CALL, Encoding.CUSTOM)


def _weight(norm: RmsNormOp) -> int | None:
    """Returns the weight of a norm; None if it has none."""
    weights = norm.inputs[op_options.CALL_TARGETS[norm.call_target].inputs :]
    return weights[0] if weights and weights[0] >= 0 else None


def is_written(norm: RmsNormOp, encoding: Encoding) -> bool:
    """Whether a norm is as this module writes it in an encoding."""
    has_weight = _weight(norm) is not None
    needs_weight = encoding in (Encoding.COMPOSITE, Encoding.ML_DRIFT)
    return norm.encoding == encoding and (has_weight or not needs_weight)


def _decode(
    model: schema.ModelT, operator: schema.OperatorT
) -> tuple[Encoding, str, float] | None:
    """Returns encoding, call target and epsilon of an RMSNorm operator, else None."""
    code = model.operatorCodes[operator.opcodeIndex]
    options = operator.builtinOptions2
    if code.builtinCode == _OP.CUSTOM:
        name = edit.text(code.customCode)
        if name in op_options.CALL_TARGETS:
            stored = edit.custom_options(operator)
            epsilon = op_options.decode_custom_options(stored)
            return Encoding.CUSTOM, name, epsilon
        if name == _ML_DRIFT_NAME:
            stored = edit.custom_options(operator)
            epsilon = op_options.decode_custom_options(stored)
            return Encoding.ML_DRIFT, op_options.RMS_NORM, epsilon
    elif code.builtinCode == _OP.STABLEHLO_CUSTOM_CALL and isinstance(
        options, schema.StablehloCustomCallOptionsT
    ):
        name = edit.text(options.callTargetName)
        if name in op_options.CALL_TARGETS:
            epsilon = op_options.decode_backend_config(edit.text(options.backendConfig))
            return Encoding.STABLEHLO_CUSTOM_CALL, name, epsilon
    elif is_rms_norm_composite(model, operator):
        attributes = edit.octets(options.compositeAttributes)
        epsilon = op_options.decode_custom_options(attributes)
        return Encoding.COMPOSITE, op_options.RMS_NORM, epsilon
    return None


def is_rms_norm_composite(model: schema.ModelT, operator: schema.OperatorT) -> bool:
    """Whether an operator is called `odml.rms_norm`, whatever it computes."""
    options = operator.builtinOptions2
    return (
        model.operatorCodes[operator.opcodeIndex].builtinCode == _OP.STABLEHLO_COMPOSITE
        and isinstance(options, schema.StableHLOCompositeOptionsT)
        and edit.text(options.name) == _COMPOSITE_NAME
    )


def _check_operands(operator: schema.OperatorT, call_target: str) -> None:
    inputs, outputs = (
        [] if operands is None else [int(i) for i in operands]
        for operands in (operator.inputs, operator.outputs)
    )
    terms, results = op_options.CALL_TARGETS[call_target]
    if len(outputs) != results or len(inputs) not in (terms, terms + 1):
        raise ValueError(
            f"{call_target} must have {terms} or {terms + 1} inputs and"
            f" {results} outputs, got {len(inputs)} and {len(outputs)}"
        )
    if min(*inputs[:terms], *outputs, 0) < 0:
        raise ValueError(
            f"{call_target} must have all inputs but the weight, and all outputs, got"
            f" {inputs} and {outputs}"
        )


def _may_be_equal(shape: list[int], expected: list[int]) -> bool:
    """Whether two shapes are equal for some sizes of the dynamic dimensions, -1."""
    return len(shape) == len(expected) and all(
        a == b or -1 in (a, b) for a, b in zip(shape, expected, strict=True)
    )


def _why_refused(tensors: list[schema.TensorT], norm: RmsNormOp) -> str | None:
    """Returns why the kernels refuse the operands of an operator; None if they do not.

    The rules are those of kernels/tflite/rms_norm_node.cc. Plain operators would
    broadcast or convert such an operand, or leave a file that no runtime takes.
    """
    x, weight = tensors[norm.inputs[0]], _weight(norm)
    terms = op_options.CALL_TARGETS[norm.call_target].inputs
    for i in (*norm.inputs[1:terms], *norm.outputs):
        if tensors[i].type != x.type:
            return f"{_operand(tensors[i])}, x is {type_name(x.type)}"
    for i in norm.inputs[1:terms]:
        if not _may_be_equal(shape_of(tensors[i]), shape_of(x)):
            return f"{_operand(tensors[i])}, x has the shape {shape_of(x)}"
    if weight is None:
        return None
    expected = shape_of(x)[-1:]
    is_type = tensors[weight].type in (x.type, schema.TensorType.FLOAT32)
    if is_type and _may_be_equal(shape_of(tensors[weight]), expected):
        return None
    return (
        f"weight, {_operand(tensors[weight])}, must be float32 or"
        f" {type_name(x.type)} of shape {expected}"
    )


def _operand(tensor: schema.TensorT) -> str:
    name, shape = edit.text(tensor.name), shape_of(tensor)
    return f"{name!r}, {type_name(tensor.type)} of shape {shape}"


def why_not(model: schema.ModelT, norm: RmsNormOp, encoding: Encoding) -> str | None:
    """Returns why a norm cannot be written in an encoding; None if it can."""
    if encoding in _ONE_OPERATOR:
        return None
    tensors = model.subgraphs[norm.subgraph].tensors
    x, weight = tensors[norm.inputs[0]], _weight(norm)
    if not shape_of(x) or int(x.shape[-1]) <= 0:
        return f"x must have a last dimension, its shape is {shape_of(x)}"
    operands = {"x": x} if weight is None else {"x": x, "weight": tensors[weight]}
    for name, tensor in operands.items():
        if tensor.type not in composite.ONE:
            return f"{name}, {edit.text(tensor.name)!r}, is {type_name(tensor.type)}"
    if norm.encoding in _ONE_OPERATOR and (reason := _why_refused(tensors, norm)):
        return reason
    if encoding != Encoding.ML_DRIFT:
        return None
    if len(x.shape) not in _ML_DRIFT_RANKS:
        return f"{encoding.value} needs x of rank 2 to 4, its shape is {shape_of(x)}"
    if weight is not None and edit.constant_data(model, tensors[weight]) is None:
        name = edit.text(tensors[weight].name)
        return f"{encoding.value} needs a constant weight, {name!r} is computed"
    return None


@dataclasses.dataclass(frozen=True)
class SkippedNorm:
    """A norm that is left alone, or that only looks like one.

    Attributes:
      subgraph: Index of the subgraph in the original file.
      operator: Index there of the operator that computes the root, or of the composite.
      reason: Why, in words.
    """

    subgraph: int
    operator: int
    reason: str


class Survey:
    """The norms of a model, in every encoding, and what only looks like one.

    Attributes:
      norms: In the order of the file.
      skipped: Candidates that are not an RMSNorm, and why.

    Args:
      model: The object tree of a .tflite.

    Raises:
      ValueError: The options of an operator cannot be read, or it has not the operands
        that it should have; the error names the operator.
    """

    def __init__(self, model: schema.ModelT) -> None:
        self.norms: list[RmsNormOp] = []
        self.skipped: list[SkippedNorm] = []
        self._model = model
        self._judge = composite.Judge(model)
        self._matches: dict[RmsNormOp, pattern.Match[int]] = {}
        self._graphs: dict[int, Graph] = {}
        # The inside of a composite is what it means, to compilers that know its name.
        decompositions = {
            operator.builtinOptions2.decompositionSubgraphIndex
            for subgraph in model.subgraphs
            for operator in subgraph.operators
            if isinstance(operator.builtinOptions2, schema.StableHLOCompositeOptionsT)
        }
        needed = edit.interfaces(model)
        for s, subgraph in enumerate(model.subgraphs):
            for o, operator in enumerate(subgraph.operators):
                try:
                    self._read(s, o, operator)
                except ValueError as error:
                    raise ValueError(f"subgraph {s}, operator {o}: {error}") from error
            if s not in decompositions:
                self._find(s, needed.get(s, set()))
        self.norms.sort(key=lambda norm: (norm.subgraph, norm.operator))

    def _read(self, s: int, o: int, operator: schema.OperatorT) -> None:
        """Notes an operator that is an RMSNorm by its name."""
        try:
            decoded = _decode(self._model, operator)
        except ValueError as error:
            if not is_rms_norm_composite(self._model, operator):
                raise
            # Of somebody else, who may mean something else by the name.
            reason = f"the composite odml.rms_norm is something else: {error}"
            self.skipped.append(SkippedNorm(s, o, reason))
            return
        if decoded is None:
            return
        encoding, call_target, epsilon = decoded
        if encoding == Encoding.COMPOSITE:
            subgraph = self._model.subgraphs[s]
            why_not = self._judge.why_not(subgraph, operator, epsilon)
            if why_not is not None:
                reason = f"the composite odml.rms_norm is something else: {why_not}"
                self.skipped.append(SkippedNorm(s, o, reason))
                return
        else:
            _check_operands(operator, call_target)
        inputs, outputs = (
            tuple(int(i) for i in operands)
            for operands in (operator.inputs, operator.outputs)
        )
        self.norms.append(
            RmsNormOp(s, o, encoding, call_target, epsilon, inputs, outputs, (o,))
        )

    def _find(self, s: int, needed: set[int]) -> None:
        """Notes the decomposed norms of a subgraph."""
        try:
            graph = Graph(self._model, s, needed)
        except ValueError as error:
            raise ValueError(f"subgraph {s}, {error}") from error
        matches, refusals = pattern.find(graph)
        for match in matches:
            norm = RmsNormOp(
                s,
                match.ops[-1],
                Encoding.DECOMPOSED,
                op_options.RMS_NORM,
                match.epsilon,
                (match.x, *match.weights),
                (match.y,),
                tuple(sorted(match.ops)),
            )
            self.norms.append(norm)
            self._matches[norm] = match
        self.skipped += [SkippedNorm(s, r.root, r.reason) for r in refusals]
        self._graphs[s] = graph

    def graph(self, subgraph: int) -> Graph:
        """Returns a subgraph as the grammar sees it."""
        if subgraph not in self._graphs:
            self._graphs[subgraph] = Graph(self._model, subgraph)
        return self._graphs[subgraph]

    def is_range_safe(self, norm: RmsNormOp) -> bool:
        """Whether a norm, or its decomposition, has the range-safe form."""
        if norm.encoding == Encoding.COMPOSITE:
            operator = self._model.subgraphs[norm.subgraph].operators[norm.operator]
            return self._judge.is_range_safe(operator)
        return norm in self._matches and self._matches[norm].range_safe

    def is_translation(self, norm: RmsNormOp) -> bool:
        """Whether a norm is in an encoding: decomposed, as `composite.build` does it.

        Of the plain form, the name of the constant tells.
        """
        match = self._matches.get(norm)
        if match is None or match.range_safe:
            return True
        name = self.graph(norm.subgraph).name(match.constant)
        return pattern.epsilon_in_name(name) is not None


def find_ops(model: schema.ModelT) -> list[RmsNormOp]:
    """Lists the norms of a model, in every encoding, in the order of the file.

    A composite is listed if its decomposition is an RMSNorm of its operands.

    Raises:
      ValueError: The options of one cannot be read, or it has not the operands that it
        should have; the error names the operator.
    """
    return Survey(model).norms


def _set_stablehlo_custom_call(
    model: schema.ModelT, operator: schema.OperatorT, call_target: str, epsilon: float
) -> None:
    operator.opcodeIndex = edit.intern_operator_code(model, _OP.STABLEHLO_CUSTOM_CALL)
    operator.builtinOptions2Type = _OPTIONS_2.StablehloCustomCallOptions
    operator.builtinOptions2 = schema.StablehloCustomCallOptionsT(
        callTargetName=call_target.encode(),
        hasSideEffect=False,
        backendConfig=op_options.encode_backend_config(epsilon).encode(),
        apiVersion=1,
        customAttributes=np.frombuffer(_CUSTOM_ATTRIBUTES, np.uint8),
    )


def _set_custom(
    model: schema.ModelT, operator: schema.OperatorT, name: str, options: bytes
) -> None:
    operator.opcodeIndex = edit.intern_operator_code(model, _OP.CUSTOM, name)
    operator.customOptions = np.frombuffer(options, np.uint8)


# Of the constant that stands for a weight which the operator does not have.
_ONES_SUFFIX = "/ones"


def _is_our_ones(model: schema.ModelT, tensor: schema.TensorT) -> bool:
    """Whether a weight is the constant of ones that `_Writer` adds."""
    is_named = edit.text(tensor.name).endswith(_ONES_SUFFIX)
    return is_named and composite.is_ones(model, tensor)


class _Writer:
    """Writes norms of one subgraph in one encoding."""

    def __init__(
        self,
        model: schema.ModelT,
        subgraph: schema.SubGraphT,
        encoding: Encoding,
        range_safe: bool,
    ) -> None:
        self._model = model
        self._subgraph = subgraph
        self._encoding = encoding
        self._range_safe = range_safe
        self._ones: dict[tuple[int, int], int] = {}

    def operators(self, norm: RmsNormOp) -> list[schema.OperatorT]:
        """Returns the operators that stand for a norm in the writer's encoding."""
        terms = op_options.CALL_TARGETS[norm.call_target].inputs
        inputs, weight = list(norm.inputs[:terms]), _weight(norm)
        if weight is not None and _is_our_ones(
            self._model, self._subgraph.tensors[weight]
        ):
            weight = None
        options = op_options.encode_custom_options(norm.epsilon)
        if self._encoding in _ONE_OPERATOR:
            inputs += [] if weight is None else [weight]
            operator = schema.OperatorT(inputs=inputs, outputs=list(norm.outputs))
            if self._encoding == Encoding.CUSTOM:
                _set_custom(self._model, operator, norm.call_target, options)
            else:
                _set_stablehlo_custom_call(
                    self._model, operator, norm.call_target, norm.epsilon
                )
            return [operator]
        operators = []
        x = inputs[0]
        if norm.call_target == op_options.ADD_RMS_NORM:
            x = norm.outputs[0]
            operators.append(self._add(inputs, x))
        y = norm.outputs[-1]
        if self._encoding == Encoding.DECOMPOSED:
            return operators + composite.build(
                self._model,
                self._subgraph,
                x,
                weight,
                norm.epsilon,
                y,
                range_safe=self._range_safe,
            )
        operator = schema.OperatorT(
            inputs=[x, self._ones_like(x) if weight is None else weight], outputs=[y]
        )
        if self._encoding == Encoding.ML_DRIFT:
            _set_custom(self._model, operator, _ML_DRIFT_NAME, options)
        else:
            self._set_composite(operator, norm.epsilon, options)
        return [*operators, operator]

    def _add(self, terms: list[int], total: int) -> schema.OperatorT:
        return schema.OperatorT(
            opcodeIndex=edit.intern_operator_code(self._model, _OP.ADD),
            inputs=terms,
            outputs=[total],
            builtinOptionsType=_OPTIONS.AddOptions,
            builtinOptions=schema.AddOptionsT(),
        )

    def _ones_like(self, x: int) -> int:
        """Returns a constant of ones, one per size and type: some runtimes need it.

        OpenVINO takes two inputs only, and vendors' parsers read the second unchecked.
        """
        tensor = self._subgraph.tensors[x]
        size = int(tensor.shape[-1])
        key = size, tensor.type
        if key not in self._ones:
            data = np.frombuffer(composite.ONE[tensor.type] * size, np.uint8)
            name = f"{edit.text(tensor.name) or 'rms_norm'}{_ONES_SUFFIX}"
            self._subgraph.tensors.append(
                schema.TensorT(
                    shape=[size],
                    type=tensor.type,
                    buffer=edit.append_buffer(self._model, data),
                    name=name.encode(),
                )
            )
            self._ones[key] = len(self._subgraph.tensors) - 1
        return self._ones[key]

    def _set_composite(
        self, operator: schema.OperatorT, epsilon: float, options: bytes
    ) -> None:
        model = self._model
        x, weight = (self._subgraph.tensors[i] for i in operator.inputs)
        decomposition = composite.build_subgraph(
            model,
            f"{_COMPOSITE_NAME}.impl_{len(model.subgraphs)}",
            x,
            weight,
            epsilon,
            range_safe=self._range_safe,
        )
        operator.opcodeIndex = edit.intern_operator_code(model, _OP.STABLEHLO_COMPOSITE)
        operator.builtinOptions2Type = _OPTIONS_2.StableHLOCompositeOptions
        operator.builtinOptions2 = schema.StableHLOCompositeOptionsT(
            name=_COMPOSITE_NAME.encode(),
            decompositionSubgraphIndex=decomposition,
            compositeAttributes=np.frombuffer(options, np.uint8),
        )


# They may prepare the operands of a norm, and may have no other reader.
_PREPARATIONS = (
    _OP.BROADCAST_TO,
    _OP.CAST,
    _OP.DEQUANTIZE,
    _OP.EXPAND_DIMS,
    _OP.RESHAPE,
    _OP.SQUEEZE,
)
# Written by the converter when the order of operators is not that of the data; it
# names operators by index.
_CONTROL_DEPENDENCIES = "model_control_dependencies"


class _SubgraphRewriter:
    """Writes norms of one subgraph in another encoding."""

    def __init__(
        self, graph: Graph, subgraph: schema.SubGraphT, writer: _Writer
    ) -> None:
        self._graph = graph
        self._subgraph = subgraph
        self._writer = writer
        # Tensors that the rewritten operators read or wrote.
        self.touched: set[int] = set()

    def run(self, norms: Sequence[RmsNormOp], needed: set[int]) -> None:
        at = {norm.operator: norm for norm in norms}
        taken = {o for norm in norms for o in norm.operators}
        operators = []
        for o, operator in enumerate(self._graph.operators):
            if o in at:
                operators += self._rewrite(at[o])
            elif o not in taken:
                operators.append(operator)
        for o in taken:
            tensors = (*self._graph.inputs(o), *self._graph.outputs(o))
            self.touched.update(i for i in tensors if i >= 0)
        self._subgraph.operators = self._without_unused(operators, taken, needed)

    def _rewrite(self, norm: RmsNormOp) -> list[schema.OperatorT]:
        terms = op_options.CALL_TARGETS[norm.call_target].inputs
        before: list[schema.OperatorT] = []
        if norm.encoding == Encoding.DECOMPOSED and len(norm.inputs) > terms:
            weight, before = self._flattened_weight(norm.inputs[-1])
            norm = dataclasses.replace(norm, inputs=(*norm.inputs[:terms], weight))
        return [*before, *self._writer.operators(norm)]

    def _flattened_weight(self, weight: int) -> tuple[int, list[schema.OperatorT]]:
        """Returns the weight as a tensor of one dimension and what computes it."""
        if len(self._graph.shape(weight)) == 1:
            return weight, []
        producer = self._graph.producer(weight)
        if producer is None:
            return self._flat(weight), []
        dequantize = copy.copy(self._graph.operators[producer])
        dequantize.inputs = [self._flat(self._graph.inputs(producer)[0])]
        dequantize.outputs = [self._flat(weight)]
        return int(dequantize.outputs[0]), [dequantize]

    def _flat(self, tensor: int) -> int:
        flat = copy.copy(self._subgraph.tensors[tensor])
        flat.shape, flat.shapeSignature = [int(flat.shape[-1])], None
        flat.name = f"{self._graph.name(tensor)}/flat".encode()
        self._subgraph.tensors.append(flat)
        return len(self._subgraph.tensors) - 1

    def _without_unused(
        self,
        operators: list[schema.OperatorT],
        taken: set[int],
        needed: set[int],
    ) -> list[schema.OperatorT]:
        """Leaves out what only the rewritten operators read: casts of x or a weight."""
        graph = self._graph
        uses = collections.Counter(int(i) for i in self._subgraph.outputs)
        uses.update(needed)
        for operator in operators:
            uses.update(() if operator.inputs is None else map(int, operator.inputs))
        unused: set[int] = set()
        pending = list(self.touched)
        while pending:
            tensor = pending.pop()
            o = graph.producer(tensor)
            if (
                o is None
                or o in taken
                or id(graph.operators[o]) in unused
                or uses[tensor]
                or graph.builtin(o) not in _PREPARATIONS
            ):
                continue
            unused.add(id(graph.operators[o]))
            inputs = [i for i in graph.inputs(o) if i >= 0]
            uses.subtract(inputs)
            pending += inputs
            self.touched.update(inputs)
        return [operator for operator in operators if id(operator) not in unused]


def rewrite(
    model: schema.ModelT,
    survey: Survey,
    norms: Iterable[RmsNormOp],
    encoding: Encoding,
    *,
    range_safe: bool = True,
) -> None:
    """Writes norms in another encoding, in place; everything else stays.

    Args:
      model: The object tree of a .tflite.
      survey: The survey of it.
      norms: Those of the survey that are written.
      encoding: The encoding that they shall have.
      range_safe: As for `translate`.

    Raises:
      ValueError: The model refers to operators by index, and these would change, or
        `why_not` says why a norm cannot be written.
    """
    norms = list(norms)
    for norm in norms:
        if (reason := why_not(model, norm, encoding)) is not None:
            raise ValueError(
                f"subgraph {norm.subgraph}, operator {norm.operator}: {reason}"
            )
    _check_order(model, norms, encoding)
    by_subgraph: dict[int, list[RmsNormOp]] = collections.defaultdict(list)
    for norm in norms:
        by_subgraph[norm.subgraph].append(norm)
    released = {
        model.subgraphs[norm.subgraph]
        .operators[norm.operator]
        .builtinOptions2.decompositionSubgraphIndex
        for norm in norms
        if norm.encoding == Encoding.COMPOSITE
    }
    needed = edit.interfaces(model)
    touched = {}
    for s, of_subgraph in by_subgraph.items():
        subgraph = model.subgraphs[s]
        writer = _Writer(model, subgraph, encoding, range_safe)
        rewriter = _SubgraphRewriter(survey.graph(s), subgraph, writer)
        rewriter.run(of_subgraph, needed.get(s, set()))
        touched[s] = rewriter.touched
    edit.drop_unused_tensors(model, touched)
    edit.drop_subgraphs(model, released)
    if norms:
        edit.sort_operator_codes(model)


def _check_order(
    model: schema.ModelT, norms: Iterable[RmsNormOp], encoding: Encoding
) -> None:
    names = [edit.text(entry.name) for entry in model.metadata or ()]
    is_one = encoding in _ONE_OPERATOR
    is_simple = encoding in (Encoding.COMPOSITE, Encoding.ML_DRIFT)
    if _CONTROL_DEPENDENCIES in names and not all(
        len(norm.operators) == 1
        and (is_one or (is_simple and norm.call_target == op_options.RMS_NORM))
        for norm in norms
    ):
        raise ValueError(
            f"the model has the metadata entry {_CONTROL_DEPENDENCIES}, which refers"
            " to operators by index; that would become wrong"
        )


def translate_model(
    model: schema.ModelT, encoding: Encoding, *, range_safe: bool = True
) -> int:
    """Translates every operator of a model to one encoding, in place.

    A composite is translated only if its decomposition is an RMSNorm, and decomposed
    norms only if they are range-safe, or named as translations name them; `fuse` takes
    the others, too. An add_rms_norm that became ADD and a norm stays two operators.
    Composites of others without a weight get one of ones.

    Args:
      model: The object tree of a .tflite.
      encoding: The encoding that all shall have.
      range_safe: As for `translate`.

    Returns:
      The number of operators that were translated.

    Raises:
      ValueError: An operator's options cannot be read, the model refers to operators
        by index, or a norm cannot be written in the encoding (`why_not`).
    """
    survey = Survey(model)
    norms = [
        norm
        for norm in survey.norms
        if not is_written(norm, encoding) and survey.is_translation(norm)
    ]
    rewrite(model, survey, norms, encoding, range_safe=range_safe)
    return len(norms)


def translate(
    content: bytes, encoding: Encoding | str, *, range_safe: bool = True
) -> bytes:
    """Returns the model with every RMSNorm operator in `encoding`.

    Everything else is kept: signatures, metadata, quantization, shared buffers.

    Args:
      content: The bytes of a .tflite.
      encoding: The encoding that all shall have.
      range_safe: Whether the operators of the encoding `decomposed`, and inside of
        composites, are those of the range-safe form. The plain form takes half to two
        thirds of the time on a stock CPU runtime, but its squares overflow in float16
        from 256 on.

    Raises:
      ValueError: `content` is not a .tflite, the encoding is unknown, the options of an
        operator cannot be read, or one cannot be written in the encoding: `ml_drift`
        needs x of rank 2 to 4 and a constant weight.
    """
    encoding = Encoding(encoding)
    model = flatbuffer.read(content)
    count = translate_model(model, encoding, range_safe=range_safe)
    return flatbuffer.to_bytes(model) if count else content
