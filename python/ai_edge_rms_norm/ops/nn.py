"""`torch.nn` modules over the functions of `ai_edge_rms_norm.ops.rms_norm`."""

import numbers
import operator
from collections.abc import Sequence
from typing import SupportsIndex, overload

import torch

from ai_edge_rms_norm.ops import rms_norm

__all__ = ["RMSNorm"]


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last dimension, exported as one operator.

    A `torch.nn.RMSNorm` in every other respect: it computes with
    `torch.nn.functional.rms_norm`, its state_dict is the same (the parameter `weight`,
    or nothing when `elementwise_affine` is False), and `torch.fx.symbolic_trace` and
    `torch.jit.script` take it (in TorchScript, forward has no `residual`). Only
    `torch.export` sees the operator.

    Args:
      normalized_shape: Hidden size, an int > 0 (or a sequence of one int, as
        `torch.nn.RMSNorm` takes).
      eps: Added to the mean square; finite and > 0. None for the machine epsilon of
        the dtype computed in, as in `torch.nn.RMSNorm`; an exported program holds the
        number.
      elementwise_affine: Whether there is a learnable weight.
      weight_offset: Added to the weight before scaling, in at least float32; Gemma
        stores w and scales by 1 + w, so its offset is 1. The initial scale is 1 for
        every offset.
      device: Device of the parameter.
      dtype: Dtype of the parameter.
      range_safe: Whether rows whose squares leave the range of float32 are right, too;
        see `ai_edge_rms_norm.rms_norm`.

    Attributes:
      normalized_shape: The hidden size, a tuple of one int.
      eps: As given.
      elementwise_affine: As given.
      weight_offset: As given.
      range_safe: As given.
      weight: The parameter, of shape [hidden size], or None.

    Raises:
      ValueError: normalized_shape is not a single int > 0, or eps is not as stated.
    """

    weight_offset: float
    range_safe: bool

    def __init__(
        self,
        normalized_shape: SupportsIndex | Sequence[SupportsIndex],
        eps: float | None = 1e-6,
        elementwise_affine: bool = True,
        weight_offset: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        range_safe: bool = False,
    ) -> None:
        sizes = (
            (normalized_shape,)
            if isinstance(normalized_shape, numbers.Integral)
            else tuple(normalized_shape)  # type: ignore[arg-type]
        )
        shape = [operator.index(size) for size in sizes]
        if len(shape) != 1 or shape[0] <= 0:
            raise ValueError(
                "RMSNorm: normalized_shape must be a single int > 0, got"
                f" {normalized_shape}"
            )
        if eps is not None:
            eps = float(eps)
            rms_norm.validate_epsilon(eps)
        # Before super().__init__, which calls reset_parameters.
        self.weight_offset = float(weight_offset)
        super().__init__(shape, eps, elementwise_affine, device=device, dtype=dtype)
        self.range_safe = range_safe

    def reset_parameters(self) -> None:
        """Sets the weight so that the scale, weight + weight_offset, is 1."""
        if self.elementwise_affine:
            torch.nn.init.constant_(self.weight, 1.0 - self.weight_offset)

    @overload
    def forward(self, x: torch.Tensor, residual: None = None) -> torch.Tensor: ...

    @overload
    def forward(
        self, x: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Normalizes x, or x + residual.

        Args:
          x: Tensor of shape [..., hidden size]; without a weight of [..., any size].
          residual: Tensor that can be added to x, or None.

        Returns:
          `rms_norm(x)` without a residual; with one the pair (x + residual,
          rms_norm(x + residual)).
        """
        weight = self.weight
        shape = self.normalized_shape if weight is not None else (x.shape[-1],)
        if residual is None:
            return rms_norm.normalize(
                x, shape, weight, self.eps, self.range_safe, self.weight_offset
            )
        return rms_norm.add_normalize(
            x, residual, shape, weight, self.eps, self.range_safe, self.weight_offset
        )

    def __prepare_scriptable__(self) -> torch.nn.Module:
        # TorchScript has one return type per method.
        module = _Scriptable.__new__(_Scriptable)
        module.__dict__.update(self.__dict__)
        return module

    def extra_repr(self) -> str:
        """Returns the arguments for the module's repr."""
        return (
            f"{self.normalized_shape}, eps={self.eps},"
            f" elementwise_affine={self.elementwise_affine},"
            f" weight_offset={self.weight_offset}, range_safe={self.range_safe}"
        )


class _Scriptable(torch.nn.RMSNorm):
    """`RMSNorm` as `torch.jit.script` compiles it."""

    __constants__ = [*torch.nn.RMSNorm.__constants__, "range_safe", "weight_offset"]
    range_safe: bool
    weight_offset: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        shape = [x.shape[-1]] if weight is None else self.normalized_shape
        return rms_norm.compute(
            x, shape, weight, self.eps, self.range_safe, self.weight_offset
        )
