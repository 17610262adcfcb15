"""How the operators are encoded in a .tflite, and the translation between encodings.

`stablehlo_custom_call`: builtin STABLEHLO_CUSTOM_CALL (173), epsilon as JSON in
  backend_config. What the converter writes.
`custom`: builtin CUSTOM (32), the call target as custom_code, epsilon in a FlexBuffers
  map. What runtimes hand to a delegate or a registered kernel.
`composite`: builtin STABLEHLO_COMPOSITE (206) `odml.rms_norm` with a decomposition
  into primitive operators, for compilers that know the name (NPU, GPU) and runtimes
  that do not. add_rms_norm becomes ADD and a composite.
"""

import copy
import dataclasses
import enum

import numpy as np
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from ai_edge_rms_norm.tflite import edit, flatbuffer, op_options

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
_OP = schema.BuiltinOperator
_OPTIONS = schema.BuiltinOptions
_OPTIONS_2 = schema.BuiltinOptions2
# The converter repeats has_side_effect, an attribute that it does not know to be
# stored in a field of its own already.
_CUSTOM_ATTRIBUTES = flexbuffers.Dumps({"has_side_effect": False})


class Encoding(str, enum.Enum):
    """One of the three encodings; the value is its name in every interface."""

    STABLEHLO_CUSTOM_CALL = "stablehlo_custom_call"
    CUSTOM = "custom"
    COMPOSITE = "composite"

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


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _decode(
    model: schema.ModelT, operator: schema.OperatorT
) -> tuple[Encoding, str, float] | None:
    """Returns encoding, call target and epsilon of an operator of ours, else None."""
    code = model.operatorCodes[operator.opcodeIndex]
    options = operator.builtinOptions2
    if code.builtinCode == _OP.CUSTOM:
        name = _text(code.customCode)
        if name in op_options.CALL_TARGETS:
            stored = edit.custom_options(operator)
            epsilon = op_options.decode_custom_options(stored)
            return Encoding.CUSTOM, name, epsilon
    elif code.builtinCode == _OP.STABLEHLO_CUSTOM_CALL and options is not None:
        name = _text(options.callTargetName)
        if name in op_options.CALL_TARGETS:
            epsilon = op_options.decode_backend_config(_text(options.backendConfig))
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
        and _text(options.name) == _COMPOSITE_NAME
    )


def _check_operands(operator: schema.OperatorT, call_target: str) -> None:
    inputs, outputs = (
        0 if operands is None else len(operands)
        for operands in (operator.inputs, operator.outputs)
    )
    expected = 1 if call_target == op_options.RMS_NORM else 2
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


def _set_custom(model, operator, call_target, epsilon):
    operator.opcodeIndex = edit.intern_operator_code(model, _OP.CUSTOM, call_target)
    operator.customOptions = np.frombuffer(
        op_options.encode_custom_options(epsilon), np.uint8
    )


class _Decomposition:
    """Builds the subgraph of a composite: rms_norm in primitive operators."""

    def __init__(self, model: schema.ModelT, name: str):
        self._model = model
        self._name = name
        self._tensors: list[schema.TensorT] = []
        self._operators: list[schema.OperatorT] = []

    def _tensor(self, like: schema.TensorT, name: str, **changes) -> int:
        tensor = copy.copy(like)
        tensor.name = f"{self._name}/{name}".encode()
        tensor.buffer, tensor.quantization, tensor.isVariable = 0, None, False
        vars(tensor).update(changes)
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _constant(self, value: np.ndarray, tensor_type: int, name: str) -> int:
        data = np.frombuffer(value.tobytes(), np.uint8)
        shape = schema.TensorT(shape=list(value.shape), type=tensor_type)
        buffer = edit.append_buffer(self._model, data)
        return self._tensor(shape, name, buffer=buffer)

    def _operator(self, builtin, inputs, output, options=None, options_type=0) -> int:
        self._operators.append(
            schema.OperatorT(
                opcodeIndex=edit.intern_operator_code(self._model, builtin),
                inputs=list(inputs),
                outputs=[output],
                builtinOptions=options,
                builtinOptionsType=options_type,
            )
        )
        return output

    def _cast(self, source: int, tensor_type: int, name: str) -> int:
        if self._tensors[source].type == tensor_type:
            return source
        output = self._tensor(self._tensors[source], name, type=tensor_type)
        options = schema.CastOptionsT(self._tensors[source].type, tensor_type)
        return self._operator(_OP.CAST, [source], output, options, _OPTIONS.CastOptions)

    def _mul(self, left: int, right: int, name: str) -> int:
        return self._operator(
            _OP.MUL,
            [left, right],
            self._tensor(self._tensors[left], name),
            schema.MulOptionsT(),
            _OPTIONS.MulOptions,
        )

    def build(
        self, x: schema.TensorT, weight: schema.TensorT | None, epsilon: float
    ) -> int:
        """Appends y = x * rsqrt(mean(x * x) + epsilon) * weight; returns its index."""
        inputs = [self._tensor(x, "x")]
        if weight is not None:
            inputs.append(self._tensor(weight, "weight"))
        x32 = self._cast(inputs[0], schema.TensorType.FLOAT32, "x_float32")
        square = self._mul(x32, x32, "square")
        row = {"shape": [*x.shape[:-1], 1]}
        if x.shapeSignature is not None:
            row["shapeSignature"] = [*x.shapeSignature[:-1], 1]
        axis = self._constant(
            np.array([len(x.shape) - 1], np.int32), schema.TensorType.INT32, "axis"
        )
        mean = self._operator(
            _OP.MEAN,
            [square, axis],
            self._tensor(self._tensors[square], "mean", **row),
            schema.ReducerOptionsT(keepDims=True),
            _OPTIONS.ReducerOptions,
        )
        shift = self._constant(
            np.array(epsilon, np.float32), schema.TensorType.FLOAT32, "epsilon"
        )
        shifted = self._operator(
            _OP.ADD,
            [mean, shift],
            self._tensor(self._tensors[mean], "mean_plus_epsilon"),
            schema.AddOptionsT(),
            _OPTIONS.AddOptions,
        )
        inverse_rms = self._operator(
            _OP.RSQRT, [shifted], self._tensor(self._tensors[mean], "inverse_rms")
        )
        y = self._mul(x32, inverse_rms, "normalized")
        if weight is not None:
            weight32 = self._cast(
                inputs[1], schema.TensorType.FLOAT32, "weight_float32"
            )
            y = self._mul(y, weight32, "scaled")
        y = self._cast(y, x.type, "y")
        self._model.subgraphs.append(
            schema.SubGraphT(
                tensors=self._tensors,
                inputs=inputs,
                outputs=[y],
                operators=self._operators,
                name=self._name.encode(),
            )
        )
        return len(self._model.subgraphs) - 1


def _composite_operators(model, subgraph, operator, call_target, epsilon):
    """Returns the operators that stand for ours in the composite encoding."""
    operators = []
    inputs = list(operator.inputs)
    if call_target == op_options.ADD_RMS_NORM:
        total, y = operator.outputs
        operators.append(
            schema.OperatorT(
                opcodeIndex=edit.intern_operator_code(model, _OP.ADD),
                inputs=inputs[:2],
                outputs=[total],
                builtinOptionsType=_OPTIONS.AddOptions,
                builtinOptions=schema.AddOptionsT(),
            )
        )
        inputs, operator.outputs = [total, *inputs[2:]], [y]
    inputs = [i for i in inputs if i >= 0]  # -1: the weight is left out.
    tensors = [subgraph.tensors[i] for i in inputs]
    name = f"{_COMPOSITE_NAME}.impl_{len(model.subgraphs)}"
    decomposition = _Decomposition(model, name).build(
        tensors[0], tensors[1] if len(tensors) > 1 else None, epsilon
    )
    operator.inputs = inputs
    operator.opcodeIndex = edit.intern_operator_code(model, _OP.STABLEHLO_COMPOSITE)
    operator.builtinOptions2Type = _OPTIONS_2.StableHLOCompositeOptions
    operator.builtinOptions2 = schema.StableHLOCompositeOptionsT(
        name=_COMPOSITE_NAME.encode(),
        decompositionSubgraphIndex=decomposition,
        compositeAttributes=np.frombuffer(
            op_options.encode_custom_options(epsilon), np.uint8
        ),
    )
    return [*operators, operator]


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


def _translate_operator(
    model: schema.ModelT,
    subgraph: schema.SubGraphT,
    operator: schema.OperatorT,
    encoding: Encoding,
    call_target: str,
    epsilon: float,
) -> list[schema.OperatorT]:
    edit.clear_options(operator)
    if encoding == Encoding.COMPOSITE:
        return _composite_operators(model, subgraph, operator, call_target, epsilon)
    if encoding == Encoding.CUSTOM:
        _set_custom(model, operator, call_target, epsilon)
    else:
        _set_stablehlo_custom_call(model, operator, call_target, epsilon)
    return [operator]


def translate_model(model: schema.ModelT, encoding: Encoding | str) -> int:
    """Translates every operator of ours in `model`, in place.

    A composite is translated only if its decomposition computes rms_norm; an
    add_rms_norm that was written as ADD and composite stays two operators.

    Args:
      model: The object tree of a .tflite.
      encoding: The encoding that all shall have.

    Returns:
      The number of operators that were translated.

    Raises:
      ValueError: The encoding is unknown, or an operator's options cannot be read.
    """
    encoding = Encoding(encoding)
    to_translate = {
        (node.subgraph, node.operator): node
        for node in find_ops(model)
        if node.encoding != encoding
    }
    released = set()
    if encoding != Encoding.COMPOSITE:
        decompositions = rms_norm_composites(model)
        for key, node in list(to_translate.items()):
            if node.encoding == Encoding.COMPOSITE:
                if key in decompositions:
                    released.add(decompositions[key])
                else:
                    del to_translate[key]
    if not to_translate:
        return 0

    for s, subgraph in enumerate(list(model.subgraphs)):
        operators = []
        for o, operator in enumerate(subgraph.operators):
            node = to_translate.get((s, o))
            operators += (
                _translate_operator(
                    model, subgraph, operator, encoding, node.call_target, node.epsilon
                )
                if node
                else [operator]
            )
        subgraph.operators = operators
    edit.drop_subgraphs(model, released)
    edit.sort_operator_codes(model)
    return len(to_translate)


def translate(content: bytes, encoding: Encoding | str) -> bytes:
    """Returns the model with every operator of ours in `encoding`.

    Everything else is kept: signatures, metadata, quantization, shared buffers.

    Args:
      content: The bytes of a .tflite.
      encoding: The encoding that all shall have.

    Raises:
      ValueError: `content` is no .tflite, the encoding is unknown, or the options of
        an operator cannot be read.
    """
    encoding = Encoding(encoding)
    model = flatbuffer.read(content)
    return flatbuffer.to_bytes(model) if translate_model(model, encoding) else content
