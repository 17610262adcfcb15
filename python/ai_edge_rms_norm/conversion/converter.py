"""Converts PyTorch modules to .tflite, with RMSNorm as one operator each."""

import enum
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from absl import logging
from torch.utils import _pytree as pytree

import ai_edge_rms_norm.conversion.lowering  # noqa: F401  Registers the lowerings.
from ai_edge_rms_norm.conversion import fx_passes, tensorflow_backend
from ai_edge_rms_norm.conversion.tensorflow_backend import CustomCalls
from ai_edge_rms_norm.conversion.torch_frontend import FRONT_END, Signature
from ai_edge_rms_norm.runtime.model import DEFAULT_SIGNATURE, Model
from ai_edge_rms_norm.tflite import edit, flatbuffer
from ai_edge_rms_norm.tflite import encoding as encoding_lib
from ai_edge_rms_norm.tflite.encoding import Encoding

__all__ = ["METADATA", "Backend", "Converter", "convert", "signature"]

# Name of the metadata entry of a model that says what converted it, for people.
METADATA = "ai_edge_rms_norm.converter"


class Backend(str, enum.Enum):
    """The converter from StableHLO to .tflite.

    AUTO: LITERT where litert-converter is installed, else TENSORFLOW.
    LITERT: litert-converter, which has no wheel for ARM64 Linux.
    TENSORFLOW: The converter in TensorFlow.
    """

    AUTO = "auto"
    LITERT = "litert"
    TENSORFLOW = "tensorflow"

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        names = ", ".join(repr(e.value) for e in cls)
        raise ValueError(f"backend must be one of {names}, got {value!r}")


def _choose(backend: Backend) -> Backend:
    if backend == Backend.AUTO:
        return Backend.LITERT if FRONT_END.converter else Backend.TENSORFLOW
    return backend


class Converter:
    """Collects signatures and converts them into one model."""

    def __init__(self) -> None:
        self._signatures: list[Signature] = []

    def signature(
        self,
        name: str,
        module: torch.nn.Module,
        args: Sequence[torch.Tensor] | None = None,
        kwargs: Mapping[str, torch.Tensor] | None = None,
        *,
        dynamic_shapes: Any = None,
    ) -> "Converter":
        """Adds a signature; returns the converter, so that calls can be chained.

        Args:
          name: The name of the signature in the model, unique.
          module: The module that the signature runs.
          args: Positional example inputs of the module.
          kwargs: Example inputs by name.
          dynamic_shapes: As `torch.export.export` takes it; None for static shapes.

        Raises:
          TypeError: `module` is not a torch.nn.Module.
          ValueError: No inputs are given, or the name is taken.
        """
        if not isinstance(module, torch.nn.Module):
            raise TypeError(
                f"module must be a torch.nn.Module, got {type(module).__name__}"
            )
        if isinstance(args, torch.Tensor):
            raise TypeError("args must be a tuple of tensors, got a tensor: write (x,)")
        if args is None and kwargs is None:
            raise ValueError(f"signature {name!r} has no example inputs")
        if any(s.name == name for s in self._signatures):
            raise ValueError(f"there is a signature {name!r} already")
        positional, named = _distinct((tuple(args or ()), dict(kwargs or {})))
        self._signatures.append(
            Signature(name, module, positional, named, dynamic_shapes)
        )
        return self

    def convert(
        self,
        *,
        encoding: Encoding | str = Encoding.STABLEHLO_CUSTOM_CALL,
        backend: Backend | str = Backend.AUTO,
        custom_calls: CustomCalls | str = CustomCalls.TFL_CUSTOM,
        fuse_decomposed: bool = False,
        fuse_add: bool = False,
        range_safe: bool = True,
        **options: Any,
    ) -> Model:
        """Converts the signatures; arguments as for the function `convert`."""
        encoding = Encoding(encoding)
        backend = _choose(Backend(backend))
        custom_calls = CustomCalls(custom_calls)

        def transform(program: torch.export.ExportedProgram) -> None:
            if fuse_decomposed:
                fx_passes.fuse_decomposed(program)
            if fuse_add:
                fx_passes.fuse_add(program)

        passes = transform if fuse_decomposed or fuse_add else None
        if backend == Backend.LITERT:
            content = FRONT_END.convert(self._signatures, passes, **options)
            model = flatbuffer.read(content)
            converter = f"{FRONT_END.name}, {FRONT_END.converter}"
        elif options:
            raise TypeError(
                f"the backend tensorflow does not take {', '.join(sorted(options))}"
            )
        else:
            model, converter = tensorflow_backend.convert(
                self._signatures, custom_calls, passes
            )
        logging.info("Converted with the backend %s: %s", backend.value, converter)
        encoding_lib.translate_model(model, encoding, range_safe=range_safe)
        edit.set_metadata(model, METADATA, converter.encode())
        return Model(flatbuffer.to_bytes(model))


def _distinct(inputs: Any) -> Any:
    """Returns the inputs with a clone where a tensor object occurs again.

    litert-torch 0.10 takes one tensor object as one input, so that the file would
    ignore what is passed as the other.
    """
    seen: set[int] = set()

    def clone_repeated(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in seen:
            return leaf.clone()
        seen.add(id(leaf))
        return leaf

    return pytree.tree_map(clone_repeated, inputs)


def signature(
    name: str,
    module: torch.nn.Module,
    args: Sequence[torch.Tensor] | None = None,
    kwargs: Mapping[str, torch.Tensor] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Converter:
    """Starts a converter with one signature; arguments as for `Converter.signature`.

    Example:
      model = (
          signature("prefill", prefill, (tokens,))
          .signature("decode", decode, (token,))
          .convert()
      )
    """
    return Converter().signature(
        name, module, args, kwargs, dynamic_shapes=dynamic_shapes
    )


def convert(
    module: torch.nn.Module,
    args: Sequence[torch.Tensor] | None = None,
    kwargs: Mapping[str, torch.Tensor] | None = None,
    *,
    encoding: Encoding | str = Encoding.STABLEHLO_CUSTOM_CALL,
    backend: Backend | str = Backend.AUTO,
    custom_calls: CustomCalls | str = CustomCalls.TFL_CUSTOM,
    dynamic_shapes: Any = None,
    fuse_decomposed: bool = False,
    fuse_add: bool = False,
    range_safe: bool = True,
    **options: Any,
) -> Model:
    """Converts a module to a .tflite with the signature `serving_default`.

    Args:
      module: The module, in evaluation mode.
      args: Positional example inputs.
      kwargs: Example inputs by name.
      encoding: How RMSNorm is encoded: `stablehlo_custom_call` (op 173), `custom`
        (builtin CUSTOM), `composite` (`odml.rms_norm`), `ml_drift` (CUSTOM
        `custom_call.RmsNorm`) or `decomposed` (plain operators).
      backend: `litert`, `tensorflow`, or `auto`: litert where litert-converter is
        installed, else tensorflow.
      custom_calls: How the custom calls pass TensorFlow: `tfl.custom`, with TensorFlow
        2.20 or newer, or `direct`, with patches/tensorflow applied. The result is the
        same. The backend litert does not need it.
      dynamic_shapes: As `torch.export.export` takes it; None for static shapes.
      fuse_decomposed: Whether decomposed RMSNorm, like torch.nn.RMSNorm in the
        exported graph, becomes `ai_edge_torch.rms_norm`, too.
      fuse_add: Whether a residual addition and the norm of the sum become one
        operator, `ai_edge_torch.add_rms_norm`.
      range_safe: Whether the operators of the encoding `decomposed`, and inside of
        composites, are those of the range-safe form. The plain form takes half to two
        thirds of the time on a stock CPU runtime, but its squares overflow in float16
        from 256 on.
      **options: Passed to `litert_torch.Converter.convert`, for example quant_config;
        for the backend litert only.

    Returns:
      The model. Its metadata entry `ai_edge_rms_norm.converter` says what converted it.

    Raises:
      ImportError: A package that the backend needs is not installed.
      RuntimeError: The converter rejects the model, or TensorFlow is too old.
      TypeError: module or args has the wrong type, or the backend tensorflow got
        options.
      ValueError: encoding, backend or custom_calls is unknown, no inputs are given, or
        a norm cannot be written in the encoding: `ml_drift` needs x of rank 2 to 4 and
        a constant weight.
    """
    return signature(
        DEFAULT_SIGNATURE, module, args, kwargs, dynamic_shapes=dynamic_shapes
    ).convert(
        encoding=encoding,
        backend=backend,
        custom_calls=custom_calls,
        fuse_decomposed=fuse_decomposed,
        fuse_add=fuse_add,
        range_safe=range_safe,
        **options,
    )
