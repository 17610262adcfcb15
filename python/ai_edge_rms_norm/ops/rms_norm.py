"""The PyTorch operators `ai_edge_torch::custom_rms_norm` and `custom_add_rms_norm`.

RMSNorm (Zhang and Sennrich, "Root Mean Square Layer Normalization",
arXiv:1910.07467) over the last dimension:

    y = x / sqrt(mean(x**2, dim=-1) + epsilon) * weight

Both are registered with `torch.library`, so they work in eager mode, with fake
tensors, `torch.export`, `torch.compile` and autograd, on any device. The functions
`rms_norm` and `add_rms_norm` also work with forward-mode AD and the transforms of
`torch.func`, which do not see into a custom operator.
"""

import math

import torch
from torch.autograd import forward_ad

__all__ = ["add_rms_norm", "rms_norm"]

FLOATING_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _validate(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> None:
    """Raises for arguments that no implementation accepts; serves eager and fake."""
    if x.dtype not in FLOATING_DTYPES:
        raise TypeError(
            f"rms_norm: x must be float32, float64, float16 or bfloat16, got {x.dtype}"
        )
    if x.dim() == 0:
        raise ValueError("rms_norm: x must have at least 1 dimension, got a scalar")
    hidden_size = x.shape[-1]
    if hidden_size == 0:
        raise ValueError(
            "rms_norm: the last dimension of x must not be empty, got shape"
            f" {tuple(x.shape)}"
        )
    if weight is not None:
        if weight.dim() != 1 or weight.shape[0] != hidden_size:
            raise ValueError(
                f"rms_norm: weight must have shape ({hidden_size},), the last dimension"
                f" of x with shape {tuple(x.shape)}, got {tuple(weight.shape)}"
            )
        if weight.dtype not in (x.dtype, torch.float32):
            raise TypeError(
                f"rms_norm: weight must have the dtype of x ({x.dtype}) or"
                f" torch.float32, got {weight.dtype}"
            )
        if weight.device != x.device:
            raise ValueError(
                f"rms_norm: weight must be on the device of x ({x.device}), got"
                f" {weight.device}"
            )
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"rms_norm: epsilon must be finite and > 0, got {epsilon}")


def _validate_residual(x: torch.Tensor, residual: torch.Tensor) -> None:
    for name in ("shape", "dtype", "device"):
        expected, got = getattr(x, name), getattr(residual, name)
        if got != expected:
            raise (TypeError if name == "dtype" else ValueError)(
                f"add_rms_norm: residual must have the {name} of x ({expected}),"
                f" got {got}"
            )


def _normalize(x: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns x / rms(x) and 1 / rms(x), both in at least float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse_rms = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon)
    return x * inverse_rms, inverse_rms


def _forward(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float
) -> torch.Tensor:
    y, _ = _normalize(x, epsilon)
    if weight is not None:
        y = y * weight.to(y.dtype)
    # One rounding at the end; contiguous, as the fake implementation promises.
    return y.to(x.dtype).contiguous()


def _rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float
) -> torch.Tensor:
    _validate(x, weight, epsilon)
    return _forward(x, weight, epsilon)


def _add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    _validate(x, weight, epsilon)
    _validate_residual(x, residual)
    total = (x + residual).contiguous()
    return total, _forward(total, weight, epsilon)


def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    weight_needs_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of `_forward`.

    With n = x / rms(x) and g = dL/dy * weight:
        dL/dx = (g - n * mean(g * n)) / rms(x),  dL/dweight = sum_rows(dL/dy * n)
    """
    normalized, inverse_rms = _normalize(x, epsilon)
    grad = grad.to(normalized.dtype)
    g = grad if weight is None else grad * weight.to(grad.dtype)
    projection = (g * normalized).mean(dim=-1, keepdim=True)
    grad_x = ((g - normalized * projection) * inverse_rms).to(x.dtype)
    if not weight_needs_grad:
        return grad_x, None
    grad_weight = (grad * normalized).reshape(-1, x.shape[-1]).sum(dim=0)
    return grad_x, grad_weight.to(weight.dtype)


@torch.library.custom_op(
    "ai_edge_torch::custom_rms_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor? weight, float epsilon=1e-6) -> Tensor",
)
def _custom_rms_norm(x, weight, epsilon=1e-6):
    return _rms_norm(x, weight, epsilon)


@_custom_rms_norm.register_fake
def _(x, weight, epsilon=1e-6):
    _validate(x, weight, epsilon)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _rms_norm_setup_context(ctx, inputs, output):
    x, weight, ctx.epsilon = inputs
    ctx.save_for_backward(x, weight)


def _rms_norm_backward(ctx, grad):
    x, weight = ctx.saved_tensors
    return *_backward(grad, x, weight, ctx.epsilon, ctx.needs_input_grad[1]), None


_custom_rms_norm.register_autograd(
    _rms_norm_backward, setup_context=_rms_norm_setup_context
)


@torch.library.custom_op(
    "ai_edge_torch::custom_add_rms_norm",
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor residual, Tensor? weight, float epsilon=1e-6)"
        " -> (Tensor, Tensor)"
    ),
)
def _custom_add_rms_norm(x, residual, weight, epsilon=1e-6):
    return _add_rms_norm(x, residual, weight, epsilon)


@_custom_add_rms_norm.register_fake
def _(x, residual, weight, epsilon=1e-6):
    _validate(x, weight, epsilon)
    _validate_residual(x, residual)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return total, torch.empty_like(total)


def _add_rms_norm_setup_context(ctx, inputs, output):
    _, _, weight, ctx.epsilon = inputs
    ctx.save_for_backward(output[0], weight)


def _add_rms_norm_backward(ctx, grad_total, grad_y):
    total, weight = ctx.saved_tensors
    grad, grad_weight = _backward(
        grad_y, total, weight, ctx.epsilon, ctx.needs_input_grad[2]
    )
    grad = grad + grad_total
    return grad, grad, grad_weight, None


_custom_add_rms_norm.register_autograd(
    _add_rms_norm_backward, setup_context=_add_rms_norm_setup_context
)


def _needs_primitives() -> bool:
    """Whether something differentiates or maps that takes no custom operator.

    Forward-mode AD gets no derivative from one, which counts as zero, without an error.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, epsilon: float = 1e-6
) -> torch.Tensor:
    """RMSNorm over the last dimension, as one operator.

    Args:
      x: Tensor of shape [..., hidden size], at least 1-D, of dtype float32,
        float64, float16 or bfloat16, in any memory layout. Zero rows are allowed.
      weight: Scale of shape [hidden size], of x's dtype or float32; None for none.
      epsilon: Added to the mean square; finite and > 0.

    Returns:
      x / sqrt(mean(x**2, dim=-1) + epsilon) * weight, contiguous, of x's shape and
      dtype. The statistic and the product with weight are computed in at least
      float32 and rounded once.

    Raises:
      TypeError: x or weight has a dtype that is not supported.
      ValueError: A shape, a device or epsilon is not as stated above.
    """
    if _needs_primitives():
        return _rms_norm(x, weight, epsilon)
    return torch.ops.ai_edge_torch.custom_rms_norm(x, weight, epsilon)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None = None,
    epsilon: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual addition followed by RMSNorm, as one operator.

    Args:
      x: As for `rms_norm`.
      residual: Tensor of x's shape and dtype.
      weight: As for `rms_norm`.
      epsilon: As for `rms_norm`.

    Returns:
      The pair (total, y): total = x + residual, rounded to x's dtype, and
      y = rms_norm(total, weight, epsilon).

    Raises:
      TypeError: x, residual or weight has a dtype that is not supported.
      ValueError: A shape, a device or epsilon is not as stated above.
    """
    if _needs_primitives():
        return _add_rms_norm(x, residual, weight, epsilon)
    return torch.ops.ai_edge_torch.custom_add_rms_norm(x, residual, weight, epsilon)
