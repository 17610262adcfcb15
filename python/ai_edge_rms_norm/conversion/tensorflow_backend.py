"""Converts through TensorFlow: StableHLO -> VHLO -> XlaCallModule -> TFLiteConverter.

This is the only converter with wheels for ARM64 Linux. The model has the signatures,
names, dtypes and dynamic dimensions that litert-converter gives.

Stock TensorFlow rejects custom calls beside TFLite operators; `CustomCalls` are the
ways to pass it. docs/VHLO_CUSTOM_CALL_FIX.md has the background.
"""

import enum
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema

import ai_edge_rms_norm.conversion.lowering  # noqa: F401  Registers the lowerings.
from ai_edge_rms_norm.conversion.torch_frontend import (
    FRONT_END,
    Lowered,
    Signature,
    Transform,
)
from ai_edge_rms_norm.tflite import flatbuffer, op_options

# TensorFlow is imported where it is used: the other backend does without it.

__all__ = ["CustomCalls", "convert"]

_CUSTOM_CALL = "stablehlo.custom_call"
# (major, minor) of the first TensorFlow whose converter legalizes a call of
# `tfl.custom` to a CUSTOM operator.
_TFL_CUSTOM_SINCE = (2, 20)
# The front ends' mark of a composite's boundary, which TensorFlow's converter consumes.
_BOUNDARY = "mark_tensor"
# XlaCallModule version that takes platforms and dynamic shapes; TensorFlow 2.18 knows
# it (tensorflow/compiler/tf2xla/kernels/xla_call_module_loader.cc lists them).
_XLA_CALL_MODULE_VERSION = 9
# Like litert-converter, which narrows 64-bit inputs and outputs.
_NARROWED = {torch.int64: torch.int32, torch.float64: torch.float32}
# Attributes of TFLiteConverter that the front ends set, too, and those of
# litert-converter. Those with an underscore have no public counterpart.
_CONVERTER_ATTRIBUTES = {
    "allow_custom_ops": True,
    "canonicalizing_inf_as_min_max_float": False,
    "model_origin_framework": "PYTORCH",
    "_experimental_enable_composite_direct_lowering": True,
    "_experimental_enable_dynamic_update_slice": True,
    "_experimental_unsafe_fuse_dynamic_shaped_broadcast": True,
}


class CustomCalls(str, enum.Enum):
    """How custom calls pass TensorFlow. Both ways give the same model.

    TFL_CUSTOM: As calls of `tfl.custom`, which TensorFlow 2.20 and later export as
      CUSTOM operators. For the custom calls of this package only.
    DIRECT: As they are, for a TensorFlow with patches/tensorflow applied.
    """

    TFL_CUSTOM = "tfl.custom"
    DIRECT = "direct"

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        names = ", ".join(repr(e.value) for e in cls)
        raise ValueError(f"custom_calls must be one of {names}, got {value!r}")


def _operations(operation: Any) -> Iterator[Any]:
    """Yields the operations nested in an MLIR operation; bodies before the holder."""
    for region in operation.regions:
        for block in region.blocks:
            for nested in list(block.operations):
                yield from _operations(nested.operation)
                yield nested.operation


def _call_target(operation: Any) -> str:
    return str(FRONT_END.ir.StringAttr(operation.attributes["call_target_name"]).value)


def _custom_calls(lowered: Lowered) -> list[Any]:
    return [
        operation
        for operation in _operations(lowered.module.operation)
        if operation.name == _CUSTOM_CALL and _call_target(operation) != _BOUNDARY
    ]


def _make_tfl_custom(lowered: Lowered) -> None:
    """Makes the custom calls of this package calls of `tfl.custom`.

    The backend_config of such a call is the text of an MLIR dictionary: custom_code and
    custom_option of the CUSTOM operator.
    """
    ir = FRONT_END.ir
    with lowered.ctx:
        for operation in _custom_calls(lowered):
            target = _call_target(operation)
            if target not in op_options.CALL_TARGETS:
                raise ValueError(
                    f"TensorFlow cannot export the custom call {target}:"
                    " custom_calls='tfl.custom' is for"
                    f" {', '.join(op_options.CALL_TARGETS)}; 'direct' needs a"
                    " TensorFlow with patches/tensorflow applied"
                )
            backend_config = ir.StringAttr(operation.attributes["backend_config"])
            epsilon = op_options.decode_backend_config(backend_config.value)
            options = op_options.encode_custom_options(epsilon).hex()
            operation.attributes["call_target_name"] = ir.StringAttr.get("tfl.custom")
            operation.attributes["backend_config"] = ir.StringAttr.get(
                f'{{custom_code = "{target}",'
                f' custom_option = #tfl<const_bytes : "0x{options}">}}'
            )


class _Program:
    """A signature, exported and lowered."""

    def __init__(self, signature: Signature, transform: Transform | None) -> None:
        exported = FRONT_END.export(signature, transform)
        self.name = signature.name
        self.lowered = FRONT_END.lower_to_stablehlo(exported)
        self.input_names = FRONT_END.input_names(signature)
        self.output_names = FRONT_END.output_names(
            exported, len(self.lowered.output_signature)
        )


def _shape(variable: Any) -> list[int | None]:
    return [
        None if isinstance(size, torch.SymInt) else int(size) for size in variable.shape
    ]


def _tf_dtype(dtype: torch.dtype) -> Any:
    import tensorflow as tf

    return tf.dtypes.as_dtype(str(dtype).removeprefix("torch."))


def _numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


class _Variables:
    """TensorFlow variables for parameters; one for all uses of the same storage."""

    def __init__(self) -> None:
        self._by_storage: dict[object, tuple[Any, torch.Tensor]] = {}

    def get(self, tensor: torch.Tensor) -> Any:
        import tensorflow as tf

        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() == 0 or key not in self._by_storage:
            variable = tf.Variable(_numpy(tensor), trainable=False)
            # The tensor is kept, so that its address is not used again.
            self._by_storage[key] = variable, tensor
        return self._by_storage[key][0]

    def all(self) -> list[Any]:
        return [variable for variable, _ in self._by_storage.values()]


def _tf_function(program: _Program, module: bytes, variables: _Variables) -> Any:
    """Returns a tf.function of the user inputs that calls the module."""
    import tensorflow as tf

    # Private: tf.raw_ops does not have XlaCallModule.
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

    def call(*args: Any) -> dict[str, Any]:
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


def _first_error(error: Exception) -> str:
    """Returns the line of a message that says why; all of it has MLIR and stacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next(
        (line for line in lines if "error:" in line),
        lines[0] if lines else type(error).__name__,
    )


def _convert_saved_model(path: str, names: list[str], custom_calls: CustomCalls) -> Any:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=names)
    for name, value in _CONVERTER_ATTRIBUTES.items():
        setattr(converter, name, value)
    try:
        return converter.convert()
    except Exception as error:
        reason = _first_error(error)
        if custom_calls == CustomCalls.DIRECT and "vhlo.custom_call" in reason:
            reason += (
                "; custom_calls='direct' needs a TensorFlow with patches/tensorflow"
                " applied"
            )
        raise RuntimeError(
            f"TensorFlow {tf.__version__} cannot convert the model: {reason}"
        ) from error


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


def _tensorflow_version() -> str:
    """Returns the version of TensorFlow.

    Raises:
      ImportError: It is not installed.
    """
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        raise ImportError(
            "the backend tensorflow needs TensorFlow, which is not installed; the extra"
            " [tensorflow] of the wheel installs it"
        ) from error
    return str(tf.__version__)


def _check_version(version: str) -> None:
    """Raises RuntimeError for a TensorFlow that does not know `tfl.custom`."""
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _TFL_CUSTOM_SINCE:
        since = ".".join(map(str, _TFL_CUSTOM_SINCE))
        raise RuntimeError(
            f"TensorFlow {version} cannot export custom calls; needed is TensorFlow"
            f" {since} or newer, or custom_calls='direct' and a TensorFlow with"
            " patches/tensorflow applied"
        )


def convert(
    signatures: Sequence[Signature],
    custom_calls: CustomCalls = CustomCalls.TFL_CUSTOM,
    transform: Transform | None = None,
) -> tuple[schema.ModelT, str]:
    """Converts signatures into one model.

    Args:
      signatures: At least one.
      custom_calls: How custom calls pass TensorFlow.
      transform: Changes every exported program in place before it is lowered.

    Returns:
      The model, with the custom calls of this package as CUSTOM (TFL_CUSTOM) or
      STABLEHLO_CUSTOM_CALL (DIRECT) operators, and the name and version of the front
      end and of TensorFlow, for messages.

    Raises:
      ImportError: TensorFlow is not installed.
      RuntimeError: TensorFlow cannot convert the model, or is too old for its custom
        calls.
      ValueError: TFL_CUSTOM is not possible for a custom call.
    """
    version = _tensorflow_version()
    programs = [_Program(signature, transform) for signature in signatures]
    has_custom_calls = any(_custom_calls(p.lowered) for p in programs)
    if has_custom_calls and custom_calls == CustomCalls.TFL_CUSTOM:
        _check_version(version)
        for program in programs:
            _make_tfl_custom(program.lowered)
    model = flatbuffer.read(_convert_programs(programs, custom_calls))
    _restore_order_and_names(model, programs)
    how = f", custom calls: {custom_calls.value}" if has_custom_calls else ""
    return model, f"{FRONT_END.name}, TensorFlow {version}{how}"


def _convert_programs(programs: list[_Program], custom_calls: CustomCalls) -> Any:
    import tensorflow as tf

    variables = _Variables()
    holder = tf.Module()
    holder.functions = [
        _tf_function(program, FRONT_END.serialize_vhlo(program.lowered), variables)
        for program in programs
    ]
    holder.parameters = variables.all()
    names = [program.name for program in programs]
    with tempfile.TemporaryDirectory(prefix="ai_edge_rms_norm.") as path:
        # TFLiteConverter takes the names of several signatures from nowhere else.
        tf.saved_model.save(
            holder, path, signatures=dict(zip(names, holder.functions, strict=True))
        )
        return _convert_saved_model(path, names, custom_calls)
