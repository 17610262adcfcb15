"""`torch.nn` modules over the operators of `ai_edge_rms_norm.ops.rms_norm`."""

from collections.abc import Sequence

import torch

from ai_edge_rms_norm.ops import rms_norm

__all__ = ["RMSNorm"]


class RMSNorm(torch.nn.Module):
    """RMSNorm over the last dimension, exported as one operator.

    The state_dict is that of `torch.nn.RMSNorm`: the parameter `weight`, or nothing
    when `elementwise_affine` is False.

    Args:
      normalized_shape: Hidden size, an int > 0 (or a sequence of one int, as
        `torch.nn.RMSNorm` takes).
      eps: Added to the mean square; finite and > 0.
      elementwise_affine: Whether there is a learnable weight.
      weight_offset: Added to the weight before scaling; Gemma stores w and scales
        by 1 + w, so its offset is 1. The initial scale is 1 for every offset.
      device: Device of the parameter.
      dtype: Dtype of the parameter.

    Raises:
      ValueError: normalized_shape is not a single int > 0.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        weight_offset: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        shape = (
            (normalized_shape,)
            if isinstance(normalized_shape, int)
            else tuple(normalized_shape)
        )
        if len(shape) != 1 or shape[0] <= 0:
            raise ValueError(
                "RMSNorm: normalized_shape must be a single int > 0, got"
                f" {normalized_shape}"
            )
        self.normalized_shape = shape
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight_offset = weight_offset
        if elementwise_affine:
            self.weight = torch.nn.Parameter(
                torch.empty(shape, device=device, dtype=dtype)
            )
        else:
            self.register_parameter("weight", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the weight so that the scale, weight + weight_offset, is 1."""
        if self.weight is not None:
            torch.nn.init.constant_(self.weight, 1.0 - self.weight_offset)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Normalizes x, or x + residual.

        Args:
          x: Tensor of shape [..., hidden size].
          residual: Tensor of x's shape and dtype, or None.

        Returns:
          `rms_norm(x)` without a residual; with one the pair (x + residual,
          rms_norm(x + residual)).
        """
        weight = self.weight
        if weight is not None:
            # In float32: 1 + w is not representable in float16 or bfloat16, and a
            # module in half precision may get float32, as in Transformers' T5.
            if self.weight_offset or weight.dtype not in (x.dtype, torch.float32):
                weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
            if self.weight_offset:
                weight = weight + self.weight_offset
        if residual is None:
            return rms_norm.rms_norm(x, weight, self.eps)
        return rms_norm.add_rms_norm(x, residual, weight, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape[0]}, eps={self.eps},"
            f" elementwise_affine={self.elementwise_affine},"
            f" weight_offset={self.weight_offset}"
        )
