"""Runs .tflite models that contain the RMSNorm operators.

`Interpreter` is the LiteRT interpreter with the rms_norm kernels plugged in as an
external delegate; every other operator runs as it does in the stock interpreter
(XNNPACK included).
"""

import ctypes
import os
import pathlib
import platform
import sys
import warnings
from typing import Any

from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm.tflite import encoding, files, flatbuffer, op_options, verify

__all__ = [
    "Interpreter",
    "delegate_path",
    "kernel_variant",
    "kernel_variants",
    "resolve_custom_calls",
]

_SUFFIX = "dylib" if sys.platform == "darwin" else "so"
_DELEGATE = (
    pathlib.Path(__file__).parents[1] / "_native" / f"librms_norm_delegate.{_SUFFIX}"
)
# The platforms of the wheels that hold the delegate (docs/platforms.md).
_WHEELS = "Linux x86_64 and Linux aarch64"


def delegate_path() -> str:
    """Returns the path of the external delegate for any TFLite runtime.

    For example `tf.lite.experimental.load_delegate(delegate_path())`. It runs the
    operators in the encodings `custom` and `composite`.

    Raises:
      FileNotFoundError: The package was built without the delegate.
    """
    if not _DELEGATE.is_file():
        raise FileNotFoundError(
            f"{_DELEGATE} is missing: this installation has no delegate, which runs"
            f" RMSNorm. Wheels with it are for {_WHEELS}; this is"
            f" {platform.system()} {platform.machine()}. Elsewhere build"
            " //python/ai_edge_rms_norm with Bazel"
        )
    return str(_DELEGATE)


def kernel_variant() -> str:
    """Returns the kernel variant that this process runs, one of `kernel_variants()`.

    Raises:
      FileNotFoundError: The package was built without the delegate.
    """
    return _text_from_delegate("ai_edge_rms_norm_variant")


def kernel_variants() -> tuple[str, ...]:
    """Returns the names of this architecture's kernel variants, the preferred first.

    They are the values of the environment variable AI_EDGE_RMS_NORM_VARIANT.

    Raises:
      FileNotFoundError: The package was built without the delegate.
    """
    return tuple(_text_from_delegate("ai_edge_rms_norm_variants").split(", "))


def _text_from_delegate(name: str) -> str:
    function = getattr(ctypes.CDLL(delegate_path()), name)
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode()


def resolve_custom_calls(content: verify.Content, name: str) -> bytes | None:
    """Returns the model with its custom calls as CUSTOM; None if it has none.

    No runtime resolves STABLEHLO_CUSTOM_CALL (the schema says that it has no kernel),
    while an unresolved CUSTOM operator may be claimed by a delegate.
    """
    codes = flatbuffer.read_builtin_codes(content, name)
    custom_call = schema.BuiltinOperator.STABLEHLO_CUSTOM_CALL
    if codes.isdisjoint((custom_call, schema.BuiltinOperator.STABLEHLO_COMPOSITE)):
        return None
    # An error for a decomposition that calls itself: the runtime would die of it.
    model = flatbuffer.read(content, name)
    if custom_call not in codes:
        return None
    encoding.translate_model(model, encoding.Encoding.CUSTOM)
    unknown = sorted(
        {
            repr(operator.builtinOptions2.callTargetName.decode())
            for subgraph in model.subgraphs
            for operator in subgraph.operators
            if model.operatorCodes[operator.opcodeIndex].builtinCode == custom_call
        }
    )
    if unknown:
        known = ", ".join(op_options.CALL_TARGETS)
        raise ValueError(
            f"{name} calls {', '.join(unknown)}, which this interpreter does not know;"
            f" it knows {known}"
        )
    return flatbuffer.to_bytes(model)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Interpreter(litert.Interpreter):  # type: ignore[misc]
    """A LiteRT interpreter that runs `ai_edge_torch.rms_norm` and `add_rms_norm`.

    Every encoding runs on the fused kernels: a composite where its decomposition is an
    RMSNorm, decomposed norms in the range-safe form (or see fuse_decomposed).
    Everything else is the stock interpreter's: pass its arguments, use its methods
    (signatures, resize_tensor_input, ...).

    Args:
      model_path: Path of a .tflite.
      model_content: Bytes of a .tflite, instead of a path.
      experimental_delegates: Further delegates, applied after ours.
      num_threads: Threads for the kernels and for XNNPACK; default the runtime's.
      fuse_decomposed: Whether decomposed RMSNorm runs on the fused kernels,
        too; `ai_edge_rms_norm.fuse` does the same to a file.
      **kwargs: Other arguments of `ai_edge_litert.interpreter.Interpreter`.

    Raises:
      ValueError: The model is damaged or calls a target that is not known.
      FileNotFoundError: There is no file at model_path, or no delegate.
    """

    def __init__(
        self,
        model_path: str | bytes | os.PathLike[str] | None = None,
        model_content: bytes | None = None,
        experimental_delegates: list[Any] | None = None,
        num_threads: int | None = None,
        fuse_decomposed: bool = False,
        **kwargs: Any,
    ) -> None:
        if "fuse_primitives" in kwargs:
            warnings.warn(
                "fuse_primitives is now fuse_decomposed",
                DeprecationWarning,
                stacklevel=2,
            )
            fuse_decomposed = kwargs.pop("fuse_primitives")
        if (model_path is None) == (model_content is None):
            raise ValueError("expected exactly one of model_path and model_content")
        name = "model_content" if model_path is None else os.fsdecode(model_path)
        if model_path is not None:
            model_path, content = name, files.read_file(name)
            resolved = resolve_custom_calls(content, name)
            if resolved is None and not _is_utf8(name):
                # The runtime cannot open a file whose name is not UTF-8.
                resolved = bytes(content)
        else:
            resolved = resolve_custom_calls(model_content, name)
        if resolved is not None:
            model_path, model_content = None, resolved
        options = {"fuse_decomposed": "1"} if fuse_decomposed else None
        delegates = [litert.load_delegate(delegate_path(), options)]
        delegates += experimental_delegates or ()
        try:
            super().__init__(
                model_path=model_path,
                model_content=model_content,
                experimental_delegates=delegates,
                num_threads=num_threads,
                **kwargs,
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
