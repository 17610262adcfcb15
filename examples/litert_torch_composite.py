"""RMSNorm as a composite that is safe in float16, in litert-torch's own style.

The proposal of docs/upstream/litert_torch.md as code that runs with litert-torch 0.10
as it is: the norm of a generative layer, marked as `odml.rms_norm`, with a
decomposition whose intermediates stay within [-1, 1]. Needs litert-torch only.
"""

import torch
from litert_torch.hlfb import StableHLOCompositeBuilder

__all__ = ["RMSNorm", "range_safe_rms_norm", "rms_norm_composite"]


def range_safe_rms_norm(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Returns x / sqrt(mean(x**2) + epsilon) * weight, without x**2.

    Numerator and denominator are divided by m = max(max|x|, sqrt(epsilon)) of the row,
    so that neither the squares nor their sum leave the range of float16.

    Args:
      x: Shape [..., hidden size].
      weight: Shape [hidden size].
      epsilon: > 0.
    """
    root = epsilon**0.5
    m = torch.clamp_min(x.abs().amax(-1, keepdim=True), root)
    z = x / m
    shift = root / m
    mean = (z * z).mean(-1, keepdim=True) + shift * shift
    return z * torch.rsqrt(mean) * weight


def rms_norm_composite(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """The same, as the composite `odml.rms_norm` in an exported program."""
    builder = StableHLOCompositeBuilder(name="odml.rms_norm", attr={"epsilon": epsilon})
    # Always with a weight: parsers of the composite read the second input.
    x, weight = builder.mark_inputs(x, weight)
    return builder.mark_outputs(range_safe_rms_norm(x, weight, epsilon))


class RMSNorm(torch.nn.Module):
    """A norm as litert_torch.generative.layers.normalization has it.

    Args:
      dim: Hidden size.
      eps: Added to the mean of squares.
      zero_centered_gamma: Whether the weight is 1 + the parameter.
    """

    def __init__(self, dim: int, eps: float = 1e-6, zero_centered_gamma: bool = False):
        super().__init__()
        self.eps = eps
        self.zero_centered_gamma = zero_centered_gamma
        start = torch.zeros(dim) if zero_centered_gamma else torch.ones(dim)
        self.weight = torch.nn.Parameter(start, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the norm of x over its last dimension."""
        weight = self.weight + 1 if self.zero_centered_gamma else self.weight
        return rms_norm_composite(x, weight, self.eps)
