"""Converts PyTorch modules to .tflite, with our operators as one operator each."""

from collections.abc import Mapping, Sequence
from typing import Any

import litert_torch
import torch

import ai_edge_rms_norm.lowering  # noqa: F401  Registers the lowerings.
from ai_edge_rms_norm.encoding import Encoding, translate
from ai_edge_rms_norm.model import DEFAULT_SIGNATURE, Model

__all__ = ["Converter", "convert", "signature"]


class Converter:
    """Collects signatures and converts them into one model."""

    def __init__(self):
        self._converter = litert_torch.Converter()

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
          TypeError: `module` is no torch.nn.Module.
          ValueError: No inputs are given, or the name is taken.
        """
        if not isinstance(module, torch.nn.Module):
            raise TypeError(
                f"module must be a torch.nn.Module, got {type(module).__name__}"
            )
        if isinstance(args, torch.Tensor):
            raise TypeError("args must be a tuple of tensors, got a tensor: write (x,)")
        self._converter.signature(
            name,
            module,
            None if args is None else tuple(args),
            None if kwargs is None else dict(kwargs),
            dynamic_shapes=dynamic_shapes,
        )
        return self

    def convert(
        self, *, encoding: Encoding | str = Encoding.STABLEHLO_CUSTOM_CALL, **options
    ) -> Model:
        """Converts the signatures; arguments as for the function `convert`."""
        encoding = Encoding(encoding)
        content = self._converter.convert(**options).model_content()
        return Model(translate(content, encoding))


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
    dynamic_shapes: Any = None,
    **options,
) -> Model:
    """Converts a module to a .tflite with the signature `serving_default`.

    Args:
      module: The module, in evaluation mode.
      args: Positional example inputs.
      kwargs: Example inputs by name.
      encoding: How our operators are written: `stablehlo_custom_call` (op 173),
        `custom` (builtin CUSTOM) or `composite` (`odml.rms_norm`).
      dynamic_shapes: As `torch.export.export` takes it; None for static shapes.
      **options: Passed to `litert_torch.Converter.convert`, for example quant_config.

    Returns:
      The model.

    Raises:
      TypeError: module or args has the wrong type.
      ValueError: The encoding is unknown, or no inputs are given.
    """
    encoding = Encoding(encoding)
    return signature(
        DEFAULT_SIGNATURE, module, args, kwargs, dynamic_shapes=dynamic_shapes
    ).convert(encoding=encoding, **options)
