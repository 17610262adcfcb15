"""Converts through TensorFlow: StableHLO -> VHLO -> XlaCallModule -> TFLiteConverter.

This is the only converter with wheels for ARM64 Linux. The model has the signatures,
names, dtypes and dynamic dimensions that litert-converter gives.

Stock TensorFlow rejects custom calls beside TFLite operators. `convert` gets them
through in one of two ways (`CustomCalls`); both give the same model.
"""

import enum
import tempfile
from collections.abc import Callable, Sequence

import ml_dtypes
import torch
from absl import logging
from ai_edge_litert import schema_py_generated as schema

import ai_edge_rms_norm.conversion.lowering  # noqa: F401  Registers the lowerings.
from ai_edge_rms_norm.conversion import front_end, tensorflow_vhlo_export

# TensorFlow is imported where it is needed: tensorflow_vhlo_export comes before it.
from ai_edge_rms_norm.tflite import encoding, flatbuffer, op_options

__all__ = ["CustomCalls", "convert"]

Transform = Callable[[torch.export.ExportedProgram], object]

_CUSTOM_CALL = "stablehlo.custom_call"
# The call target that TensorFlow's converter legalizes to a CUSTOM operator, with the
# text of an MLIR dictionary {custom_code, custom_option} as its backend_config.
_CARRIER = "tfl.custom"
# (major, minor) of the first TensorFlow that does; docs/VHLO_CUSTOM_CALL_FIX.md.
_CARRIER_SINCE = (2, 20)
# The front ends' mark of a composite's boundary, which TensorFlow's converter consumes.
_BOUNDARY = "mark_tensor"
# XlaCallModule version that takes platforms and dynamic shapes; TensorFlow 2.18 knows
# it (tensorflow/compiler/tf2xla/kernels/xla_call_module_loader.cc lists them).
_XLA_CALL_MODULE_VERSION = 9
# Like litert-converter, which narrows 64-bit inputs and outputs.
_NARROWED = {torch.int64: torch.int32, torch.float64: torch.float32}
# StableHLO operators that a stock TensorFlow exports beside TFLite operators
# (Translator::BuildOperator in tensorflow/compiler/mlir/lite/flatbuffer_export.cc).
_STOCK_STABLEHLO = frozenset(
    f"STABLEHLO_{name}"
    for name in (
        "ADD",
        "AND",
        "CASE",
        "COMPOSITE",
        "GATHER",
        "MAXIMUM",
        "MINIMUM",
        "MULTIPLY",
        "OR",
        "PAD",
        "REDUCE_WINDOW",
        "RNG_BIT_GENERATOR",
        "SCATTER",
        "SHIFT_LEFT",
        "SUBTRACT",
    )
)


class CustomCalls(str, enum.Enum):
    """How custom calls get through TensorFlow.

    VHLO_EXPORT: As they are, with the replaced exporter of `tensorflow_vhlo_export`.
    CARRIER: As `tfl.custom` calls, which TensorFlow 2.20 and later export as CUSTOM
      operators, translated in the finished flatbuffer; for our operators only.
    DIRECT: As they are; for a TensorFlow with patches/tensorflow applied.
    """

    VHLO_EXPORT = "vhlo_export"
    CARRIER = "carrier"
    DIRECT = "direct"


def _operations(operation):
    """Yields the operations nested in an MLIR operation; bodies before the holder."""
    for region in operation.regions:
        for block in region.blocks:
            for nested in list(block.operations):
                yield from _operations(nested.operation)
                yield nested.operation


def _call_target(operation) -> str:
    return front_end.ir.StringAttr(operation.attributes["call_target_name"]).value


def _custom_calls(lowered) -> list:
    return [
        operation
        for operation in _operations(lowered.module.operation)
        if operation.name == _CUSTOM_CALL and _call_target(operation) != _BOUNDARY
    ]


def _put_on_carrier(lowered) -> None:
    """Makes our custom calls `tfl.custom` calls, with the options of CUSTOM."""
    ir = front_end.ir
    with lowered.ctx:
        for operation in _custom_calls(lowered):
            target = _call_target(operation)
            if target not in op_options.CALL_TARGETS:
                raise ValueError(
                    f"this TensorFlow cannot export the custom call {target}; the"
                    f" carrier is for {', '.join(op_options.CALL_TARGETS)}"
                )
            backend_config = ir.StringAttr(operation.attributes["backend_config"])
            epsilon = op_options.decode_backend_config(backend_config.value)
            options = op_options.encode_custom_options(epsilon).hex()
            operation.attributes["call_target_name"] = ir.StringAttr.get(_CARRIER)
            operation.attributes["backend_config"] = ir.StringAttr.get(
                f'{{custom_code = "{target}",'
                f' custom_option = #tfl<const_bytes : "0x{options}">}}'
            )


class _Program:
    """A signature, exported and lowered."""

    def __init__(self, signature: front_end.Signature, transform: Transform | None):
        exported = front_end.export(signature, transform)
        self.name = signature.name
        self.lowered = front_end.lower_to_stablehlo(exported)
        self.input_names = front_end.input_names(signature)
        self.output_names = front_end.output_names(
            exported, len(self.lowered.output_signature)
        )


def _shape(variable) -> list[int | None]:
    return [
        None if isinstance(size, torch.SymInt) else int(size) for size in variable.shape
    ]


def _tf_dtype(dtype: torch.dtype):
    import tensorflow as tf

    return tf.dtypes.as_dtype(str(dtype).removeprefix("torch."))


def _numpy(tensor: torch.Tensor):
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


class _Variables:
    """TensorFlow variables for parameters; one for all uses of the same storage."""

    def __init__(self):
        self._by_storage = {}

    def get(self, tensor: torch.Tensor):
        import tensorflow as tf

        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() == 0 or key not in self._by_storage:
            variable = tf.Variable(_numpy(tensor), trainable=False)
            # The tensor is kept, so that its address is not used again.
            self._by_storage[key] = variable, tensor
        return self._by_storage[key][0]

    def all(self) -> list:
        return [variable for variable, _ in self._by_storage.values()]


def _tf_function(program: _Program, module: bytes, variables: _Variables):
    """Returns a tf.function of the user inputs that calls the module."""
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.python import xla

    lowered = program.lowered
    inputs = sorted(
        (s for s in lowered.input_signature if s.input_spec.is_user_input),
        key=lambda s: s.input_spec.i,
    )
    specs = [
        tf.TensorSpec(_shape(s), _tf_dtype(_NARROWED.get(s.dtype, s.dtype)), name)
        for s, name in zip(inputs, program.input_names, strict=True)
    ]
    parameters = {
        s.input_spec.name: variables.get(lowered.state_dict[s.input_spec.name])
        for s in lowered.input_signature
        if s.input_spec.is_parameter
    }

    def call(*args):
        results = xla.call_module(
            [
                tf.cast(args[s.input_spec.i], _tf_dtype(s.dtype))
                if s.input_spec.is_user_input
                else parameters[s.input_spec.name]
                for s in lowered.input_signature
            ],
            version=_XLA_CALL_MODULE_VERSION,
            module=module,
            Tout=[_tf_dtype(s.dtype) for s in lowered.output_signature],
            Sout=[_shape(s) for s in lowered.output_signature],
            function_list=[],
            platforms=["CPU"],
        )
        dtypes = [_NARROWED.get(s.dtype, s.dtype) for s in lowered.output_signature]
        return {
            name: tf.cast(result, _tf_dtype(dtype))
            for name, result, dtype in zip(
                program.output_names, results, dtypes, strict=True
            )
        }

    return tf.function(call, input_signature=specs, autograph=False)


def _convert_saved_model(path: str, names: list[str]) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=names)
    # What the front ends set on TensorFlow's and on litert-converter's converter.
    converter.allow_custom_ops = True
    converter.canonicalizing_inf_as_min_max_float = False
    converter.model_origin_framework = "PYTORCH"
    converter._experimental_enable_composite_direct_lowering = True
    converter._experimental_enable_dynamic_update_slice = True
    converter._experimental_unsafe_fuse_dynamic_shaped_broadcast = True
    try:
        return converter.convert()
    except Exception as error:
        # The whole text has the MLIR of the operator and the Python stack.
        raise RuntimeError(
            f"TensorFlow {tf.__version__} cannot convert the model:"
            f" {str(error).strip().splitlines()[0]}"
        ) from error


def _check_operators(model: schema.ModelT) -> None:
    """Raises for operators that only the replaced exporter lets through."""
    names = {
        value: name
        for name, value in vars(schema.BuiltinOperator).items()
        if name.startswith("STABLEHLO_")
    }
    left = sorted(
        {names.get(code.builtinCode) for code in model.operatorCodes}
        - {None, "STABLEHLO_CUSTOM_CALL"}
        - _STOCK_STABLEHLO
    )
    if left:
        raise RuntimeError(
            f"TensorFlow did not legalize {', '.join(left)}, for which TFLite has no"
            " kernel"
        )


def _restore_order_and_names(model: schema.ModelT, programs: list[_Program]) -> None:
    """Undoes what the saved model does to inputs and outputs: sorting and renaming."""
    definitions = {d.signatureKey.decode(): d for d in model.signatureDefs}
    for program in programs:
        definition = definitions[program.name]
        subgraph = model.subgraphs[definition.subgraphIndex]
        for attribute, wanted, suffix in (
            ("inputs", program.input_names, ""),
            ("outputs", program.output_names, "_output"),
        ):
            tensors = {
                m.name.decode(): m.tensorIndex for m in getattr(definition, attribute)
            }
            setattr(subgraph, attribute, [tensors[name] for name in wanted])
            for name in wanted:
                # As litert-converter names them.
                tensor = subgraph.tensors[tensors[name]]
                tensor.name = f"{program.name}_{name}{suffix}".encode()


def _choose_way(has_custom_calls: bool) -> CustomCalls:
    if not has_custom_calls:
        return CustomCalls.DIRECT
    reason = tensorflow_vhlo_export.load()
    if reason is None:
        return CustomCalls.VHLO_EXPORT
    reason = f"the exporter cannot be replaced: {reason}"
    _check_carrier(reason)
    logging.warning("Custom calls go on the carrier, since %s.", reason)
    return CustomCalls.CARRIER


def _check_carrier(reason: str) -> None:
    """Raises if TensorFlow does not know the carrier; `reason` is why that is asked."""
    version = tensorflow_vhlo_export.tensorflow_version()
    if tensorflow_vhlo_export.release(version) < _CARRIER_SINCE:
        since = ".".join(map(str, _CARRIER_SINCE))
        raise RuntimeError(
            f"TensorFlow {version} cannot export custom calls: the carrier needs"
            f" {since} or newer, and {reason}"
        )


def convert(
    signatures: Sequence[front_end.Signature],
    custom_calls: CustomCalls | str | None = None,
    transform: Transform | None = None,
) -> tuple[bytes, str]:
    """Converts signatures into one model.

    Args:
      signatures: At least one.
      custom_calls: How custom calls get through TensorFlow. Default: with the replaced
        exporter, and on the carrier where that is not possible.
      transform: Changes every exported program in place before it is lowered.

    Returns:
      The bytes of the .tflite, in which our operators are STABLEHLO_CUSTOM_CALL or
      CUSTOM, and what converted it, for people.

    Raises:
      ImportError: TensorFlow is not installed.
      RuntimeError: TensorFlow cannot convert the model, or not in the way asked for.
      ValueError: A custom call is not ours and has to go on the carrier.
    """
    if tensorflow_vhlo_export.tensorflow_version() is None:
        raise ImportError(
            "the backend tensorflow needs TensorFlow, which is not installed"
        )
    programs = [_Program(signature, transform) for signature in signatures]
    has_custom_calls = any(_custom_calls(p.lowered) for p in programs)
    way = (
        _choose_way(has_custom_calls)
        if custom_calls is None
        else CustomCalls(custom_calls)
    )
    if way == CustomCalls.VHLO_EXPORT:
        # Loads the library before TensorFlow is imported below, or raises.
        with tensorflow_vhlo_export.scope():
            content = _convert_programs(programs)
    else:
        if way == CustomCalls.CARRIER:
            _check_carrier("nothing else was asked for")
            for program in programs:
                _put_on_carrier(program.lowered)
        content = _convert_programs(programs)

    model = flatbuffer.read(content)
    _check_operators(model)
    _restore_order_and_names(model, programs)
    if way == CustomCalls.CARRIER:
        encoding.translate_model(model, encoding.Encoding.STABLEHLO_CUSTOM_CALL)
    version = tensorflow_vhlo_export.tensorflow_version()
    how = f", custom calls: {way.value}" if has_custom_calls else ""
    return flatbuffer.to_bytes(model), f"{front_end.NAME}, TensorFlow {version}{how}"


def _convert_programs(programs: list[_Program]) -> bytes:
    import tensorflow as tf

    variables = _Variables()
    holder = tf.Module()
    holder.functions = [
        _tf_function(program, front_end.serialize_vhlo(program.lowered), variables)
        for program in programs
    ]
    holder.parameters = variables.all()
    names = [program.name for program in programs]
    with tempfile.TemporaryDirectory(prefix="ai_edge_rms_norm.") as path:
        # TFLiteConverter takes the names of several signatures from nowhere else.
        tf.saved_model.save(
            holder, path, signatures=dict(zip(names, holder.functions, strict=True))
        )
        return _convert_saved_model(path, names)
