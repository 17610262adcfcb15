"""How the operators are encoded in a .tflite, and the translation between encodings.

`stablehlo_custom_call`: builtin STABLEHLO_CUSTOM_CALL (173), epsilon as JSON in
  backend_config. What the converter writes.
`custom`: builtin CUSTOM (32), the call target as custom_code, epsilon in a FlexBuffers
  map. What runtimes hand to a delegate or a registered kernel.
`composite`: builtin STABLEHLO_COMPOSITE (206) `odml.rms_norm` with a decomposition
  into plain operators, for compilers that know the name and runtimes that do not.
`ml_drift`: builtin CUSTOM `custom_call.RmsNorm`, options as `custom`: one kernel on
  LiteRT's GPU accelerator.
`decomposed`: plain operators, in a form whose intermediates fit float16 (`composite`).

In the last three add_rms_norm becomes ADD and a norm. Composite and `ml_drift` always
have a weight, of ones if there is none.
"""

import collections
import copy
import dataclasses
import enum
from collections.abc import Iterable

import numpy as np
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from ai_edge_rms_norm.tflite import composite, edit, flatbuffer, op_options

__all__ = [
    "Encoding",
    "RmsNormOp",
    "find_ops",
    "is_rms_norm_composite",
    "rms_norm_composites",
    "translate",
    "translate_model",
]

_COMPOSITE_NAME = "odml.rms_norm"
# The name that LiteRT's GPU accelerator, ML Drift, knows; x, weight to y.
_ML_DRIFT_NAME = "custom_call.RmsNorm"
_NUM_OUTPUTS = {op_options.RMS_NORM: 1, op_options.ADD_RMS_NORM: 2}
_OP = schema.BuiltinOperator
_OPTIONS = schema.BuiltinOptions
_OPTIONS_2 = schema.BuiltinOptions2
# 1.0, little-endian.
_ONES = {
    schema.TensorType.FLOAT32: np.float32(1).tobytes(),
    schema.TensorType.FLOAT16: np.float16(1).tobytes(),
    schema.TensorType.BFLOAT16: b"\x80\x3f",
}
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
    def _missing_(cls, value):
        names = ", ".join(repr(e.value) for e in cls)
        raise ValueError(f"encoding must be one of {names}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class RmsNormOp:
    """One operator of ours in a model.

    Attributes:
      subgraph: Index of its subgraph.
      operator: Index of the operator in the subgraph.
      encoding: How it is encoded.
      call_target: `ai_edge_torch.rms_norm` or `ai_edge_torch.add_rms_norm`.
      epsilon: As stored, a float64.
      inputs: Tensor indices x[, weight] or x, residual[, weight].
      outputs: Tensor indices y or total, y.
    """

    subgraph: int
    operator: int
    encoding: Encoding
    call_target: str
    epsilon: float
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _decode(
    model: schema.ModelT, operator: schema.OperatorT
) -> tuple[Encoding, str, float] | None:
    """Returns encoding, call target and epsilon of an operator of ours, else None."""
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
    elif code.builtinCode == _OP.STABLEHLO_CUSTOM_CALL and options is not None:
        name = edit.text(options.callTargetName)
        if name in op_options.CALL_TARGETS:
            epsilon = op_options.decode_backend_config(edit.text(options.backendConfig))
            return Encoding.STABLEHLO_CUSTOM_CALL, name, epsilon
    elif is_rms_norm_composite(model, operator):
        attributes = edit.octets(options.compositeAttributes)
        try:
            epsilon = op_options.decode_custom_options(attributes)
        except ValueError:
            return None  # Of somebody else, who means something else by the name.
        return Encoding.COMPOSITE, op_options.RMS_NORM, epsilon
    return None


def is_rms_norm_composite(model: schema.ModelT, operator: schema.OperatorT) -> bool:
    """Whether an operator is called `odml.rms_norm`, whatever it computes."""
    options = operator.builtinOptions2
    return (
        model.operatorCodes[operator.opcodeIndex].builtinCode == _OP.STABLEHLO_COMPOSITE
        and options is not None
        and edit.text(options.name) == _COMPOSITE_NAME
    )


def _check_operands(operator: schema.OperatorT, call_target: str) -> None:
    inputs, outputs = (
        0 if operands is None else len(operands)
        for operands in (operator.inputs, operator.outputs)
    )
    expected = _NUM_OUTPUTS[call_target]
    if outputs != expected or inputs not in (expected, expected + 1):
        raise ValueError(
            f"{call_target} must have {expected} or {expected + 1} inputs and"
            f" {expected} outputs, got {inputs} and {outputs}"
        )


def find_ops(model: schema.ModelT) -> list[RmsNormOp]:
    """Lists our operators, in every encoding, in the order of the file.

    Raises:
      ValueError: The options of one cannot be read, or it has not the operands that it
        should have; the error names the operator.
    """
    nodes = []
    for s, subgraph in enumerate(model.subgraphs):
        for o, operator in enumerate(subgraph.operators):
            try:
                decoded = _decode(model, operator)
                # A composite may have any; what it computes is looked at later.
                if decoded and decoded[0] != Encoding.COMPOSITE:
                    _check_operands(operator, decoded[1])
            except ValueError as error:
                raise ValueError(f"subgraph {s}, operator {o}: {error}") from error
            if decoded:
                nodes.append(
                    RmsNormOp(
                        s,
                        o,
                        *decoded,
                        inputs=tuple(int(i) for i in operator.inputs),
                        outputs=tuple(int(i) for i in operator.outputs),
                    )
                )
    return nodes


def _set_stablehlo_custom_call(model, operator, call_target, epsilon):
    operator.opcodeIndex = edit.intern_operator_code(model, _OP.STABLEHLO_CUSTOM_CALL)
    operator.builtinOptions2Type = _OPTIONS_2.StablehloCustomCallOptions
    operator.builtinOptions2 = schema.StablehloCustomCallOptionsT(
        callTargetName=call_target.encode(),
        hasSideEffect=False,
        backendConfig=op_options.encode_backend_config(epsilon).encode(),
        apiVersion=1,
        customAttributes=np.frombuffer(_CUSTOM_ATTRIBUTES, np.uint8),
    )


def _set_custom(model, operator, name, options):
    operator.opcodeIndex = edit.intern_operator_code(model, _OP.CUSTOM, name)
    operator.customOptions = np.frombuffer(options, np.uint8)


# Of the constant that stands for a weight which the operator does not have.
_ONES_SUFFIX = "/ones"


def _is_our_ones(model: schema.ModelT, tensor: schema.TensorT) -> bool:
    """Whether a weight is the constant of ones that `_Writer` adds."""
    if not edit.text(tensor.name).endswith(_ONES_SUFFIX):
        return False
    data = edit.constant_data(model, tensor)
    one = _ONES.get(tensor.type)
    return data is not None and one is not None and bytes(data) == one * tensor.shape[0]


class _Writer:
    """Writes norms of one subgraph in one encoding."""

    def __init__(
        self,
        model: schema.ModelT,
        subgraph: schema.SubGraphT,
        encoding: Encoding,
        range_safe: bool,
    ):
        self._model = model
        self._subgraph = subgraph
        self._encoding = encoding
        self._range_safe = range_safe
        self._ones: dict[tuple[int, int], int] = {}

    def operators(self, norm: RmsNormOp) -> list[schema.OperatorT]:
        """Returns the operators that stand for a norm in the writer's encoding."""
        inputs = [i for i in norm.inputs if i >= 0]  # -1: the weight is left out.
        terms = _NUM_OUTPUTS[norm.call_target]
        weight = inputs[terms] if len(inputs) > terms else None
        if weight is not None and _is_our_ones(
            self._model, self._subgraph.tensors[weight]
        ):
            weight = None
        options = op_options.encode_custom_options(norm.epsilon)
        if self._encoding in (Encoding.STABLEHLO_CUSTOM_CALL, Encoding.CUSTOM):
            inputs = inputs[:terms] + ([] if weight is None else [weight])
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
            operators.append(self._add(inputs[:2], x))
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
            data = np.frombuffer(_ONES[tensor.type] * size, np.uint8)
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


def _computes_rms_norm(
    model: schema.ModelT, decomposition: int, epsilon: float
) -> bool:
    """Whether a composite's decomposition is rms_norm of its inputs; runs it.

    The name alone does not say so: litert-torch's layer, for one, may multiply by a
    second scale inside the composite.
    """
    if not 0 <= decomposition < len(model.subgraphs):
        return False
    subgraph = model.subgraphs[decomposition]
    if len(subgraph.inputs) not in (1, 2) or len(subgraph.outputs) != 1:
        return False
    alone = copy.copy(model)
    alone.subgraphs, alone.signatureDefs = [subgraph], None
    used = {tensor.buffer for tensor in subgraph.tensors}
    # Without the weights of everything else, and without its operators, of which the
    # runtime may not know every one.
    alone.buffers = [
        buffer if i in used else schema.BufferT()
        for i, buffer in enumerate(model.buffers)
    ]
    codes = {operator.opcodeIndex for operator in subgraph.operators}
    alone.operatorCodes = [
        model.operatorCodes[i if i in codes else min(codes, default=0)]
        for i in range(len(model.operatorCodes))
    ]
    rng = np.random.default_rng(0)
    inputs = []
    try:
        interpreter = litert.Interpreter(model_content=flatbuffer.to_bytes(alone))
        interpreter.allocate_tensors()
        for detail in interpreter.get_input_details():
            # So small that epsilon matters as much as the mean square.
            scale = np.sqrt(epsilon) if not inputs else 1.0
            value = scale * rng.standard_normal(detail["shape"])
            inputs.append(value.astype(detail["dtype"]))
            interpreter.set_tensor(detail["index"], inputs[-1])
        interpreter.invoke()
    except (RuntimeError, ValueError):
        return False  # It refers to other subgraphs, or the runtime does not know it.
    y = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    if not all(np.issubdtype(value.dtype, np.floating) for value in (y, *inputs)):
        return False
    x, *weight = [value.astype(np.float64) for value in inputs]
    if weight and weight[0].shape != x.shape[-1:]:
        return False
    expected = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon)
    expected *= weight[0] if weight else 1.0
    resolution = np.finfo(inputs[0].dtype).eps
    return y.shape == x.shape and np.allclose(
        y.astype(np.float64), expected, rtol=16 * resolution, atol=4 * resolution
    )


def rms_norm_composites(model: schema.ModelT) -> dict[tuple[int, int], int]:
    """Finds the composites `odml.rms_norm` that compute rms_norm.

    Returns:
      The index of the decomposition by the indices of subgraph and operator.

    Raises:
      ValueError: The options of an operator of ours cannot be read.
    """
    decompositions = {}
    for node in find_ops(model):
        if node.encoding == Encoding.COMPOSITE:
            operator = model.subgraphs[node.subgraph].operators[node.operator]
            decomposition = operator.builtinOptions2.decompositionSubgraphIndex
            if _computes_rms_norm(model, decomposition, node.epsilon):
                decompositions[node.subgraph, node.operator] = decomposition
    return decompositions


def translate_model(
    model: schema.ModelT, encoding: Encoding | str, *, range_safe: bool = True
) -> int:
    """Translates every operator of ours in `model`, in place.

    A composite is translated only if its decomposition computes rms_norm; an
    add_rms_norm that was written as ADD and composite stays two operators.

    Args:
      model: The object tree of a .tflite.
      encoding: The encoding that all shall have.
      range_safe: As for `translate`.

    Returns:
      The number of operators that were translated.

    Raises:
      ValueError: The encoding is unknown, or an operator's options cannot be read.
    """
    encoding = Encoding(encoding)
    decompositions = rms_norm_composites(model)
    norms = [
        norm
        for norm in find_ops(model)
        if norm.encoding != encoding
        and (
            norm.encoding != Encoding.COMPOSITE
            or (norm.subgraph, norm.operator) in decompositions
        )
    ]
    rewrite(model, norms, encoding, range_safe=range_safe)
    released = {
        decompositions[norm.subgraph, norm.operator]
        for norm in norms
        if norm.encoding == Encoding.COMPOSITE
    }
    edit.drop_subgraphs(model, released)
    if norms:
        edit.sort_operator_codes(model)
    return len(norms)


def rewrite(
    model: schema.ModelT,
    norms: Iterable[RmsNormOp],
    encoding: Encoding,
    *,
    range_safe: bool = True,
) -> None:
    """Writes norms in another encoding, in place; everything else stays."""
    by_subgraph = collections.defaultdict(dict)
    for norm in norms:
        by_subgraph[norm.subgraph][norm.operator] = norm
    for s, at in by_subgraph.items():
        subgraph = model.subgraphs[s]
        writer = _Writer(model, subgraph, encoding, range_safe)
        operators = []
        for o, operator in enumerate(subgraph.operators):
            operators += writer.operators(at[o]) if o in at else [operator]
        subgraph.operators = operators
        touched = {i for norm in at.values() for i in norm.inputs if i >= 0}
        edit.drop_tensors(model, s, touched - edit.used_tensors(subgraph))


def translate(
    content: bytes, encoding: Encoding | str, *, range_safe: bool = True
) -> bytes:
    """Returns the model with every operator of ours in `encoding`.

    Everything else is kept: signatures, metadata, quantization, shared buffers.

    Args:
      content: The bytes of a .tflite.
      encoding: The encoding that all shall have.
      range_safe: Whether the operators of the encoding `decomposed`, and inside of
        composites, are those of the range-safe form. The plain form takes about half
        the time on a CPU, but its squares overflow in float16 from 256 on.

    Raises:
      ValueError: `content` is no .tflite, the encoding is unknown, or the options of
        an operator cannot be read.
    """
    encoding = Encoding(encoding)
    model = flatbuffer.read(content)
    count = translate_model(model, encoding, range_safe=range_safe)
    return flatbuffer.to_bytes(model) if count else content
