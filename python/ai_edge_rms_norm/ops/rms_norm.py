"""RMSNorm as PyTorch functions, and the operators that they are exported as.

RMSNorm (Zhang and Sennrich, "Root Mean Square Layer Normalization",
arXiv:1910.07467) over the last dimension:

    y = x / sqrt(mean(x**2, dim=-1) + epsilon) * weight

The functions `rms_norm` and `add_rms_norm` are `torch.nn.functional.rms_norm`, except
while a program is exported (`torch.compiler.is_exporting`): then they emit one
operator, `ai_edge_torch::custom_rms_norm` or `ai_edge_torch::custom_add_rms_norm`,
which the lowering to .tflite knows. Derivatives, transforms, autocast, compilers and
devices are therefore PyTorch's own. The operators also work when they are called
directly: outside of an export they compute, differentiate and compile as
`torch.nn.functional.rms_norm`.

docs/pytorch.md has the table of numerics.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

__all__ = ["add_rms_norm", "rms_norm"]

if TYPE_CHECKING:
    Shape = Sequence[int]
else:
    Shape = list[int]  # TorchScript knows no other sequence.

FLOATING_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


_is_exporting = torch.compiler.is_exporting
# A global of this module is found faster than an attribute of another, and one row
# takes no longer than 100 look-ups.
_INFINITY = math.inf
_torch_rms_norm = torch.rms_norm


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _exports() -> bool:
    """_is_exporting(), also in torch 2.9, where it is true inside torch.compile."""
    return _is_exporting()


# Devices whose autocast computes torch.rms_norm in float32 and returns that. There is
# no public way to ask; a test compares it with what torch.rms_norm returns.
_AUTOCAST_TO_FLOAT32 = frozenset(
    device
    for device in ("cuda", "xpu", "mps", "cpu", "mtia", "maia")
    if torch._C._dispatch_has_kernel_for_dispatch_key(  # noqa: SLF001
        "aten::rms_norm", f"Autocast{device.upper()}"
    )
)


def validate_epsilon(epsilon: float) -> None:
    """Raises ValueError unless epsilon is finite and > 0."""
    if not 0.0 < epsilon < _INFINITY:  # NaN fails it, too.
        raise ValueError(f"rms_norm: epsilon must be finite and > 0, got {epsilon}")


def _validate(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> int:
    """Raises for arguments that the operators do not accept; serves eager and fake.

    Returns:
      The hidden size.
    """
    dtype, shape = x.dtype, x.shape
    if dtype not in FLOATING_DTYPES:
        raise TypeError(
            f"rms_norm: x must be float32, float64, float16 or bfloat16, got {dtype}"
        )
    if not shape:
        raise ValueError("rms_norm: x must have at least 1 dimension, got a scalar")
    hidden_size = shape[-1]
    if hidden_size == 0:
        raise ValueError(
            "rms_norm: the last dimension of x must not be empty, got shape"
            f" {tuple(shape)}"
        )
    if weight is not None:
        if weight.shape != (hidden_size,):
            raise ValueError(
                f"rms_norm: weight must have shape ({hidden_size},), the last dimension"
                f" of x with shape {tuple(shape)}, got {tuple(weight.shape)}"
            )
        if weight.dtype not in (dtype, torch.float32):
            raise TypeError(
                f"rms_norm: weight must have the dtype of x ({dtype}) or"
                f" torch.float32, got {weight.dtype}"
            )
        if weight.device != x.device:
            raise ValueError(
                f"rms_norm: weight must be on the device of x ({x.device}), got"
                f" {weight.device}"
            )
    validate_epsilon(epsilon)
    return hidden_size


def _validate_residual(x: torch.Tensor, residual: torch.Tensor) -> None:
    for name in ("shape", "dtype", "device"):
        expected, got = getattr(x, name), getattr(residual, name)
        if got != expected:
            raise (TypeError if name == "dtype" else ValueError)(
                f"add_rms_norm: residual must have the {name} of x ({expected}),"
                f" got {got}"
            )


# TorchScript compiles this and what it calls: no globals but functions and modules.


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Returns the dtype that the statistic of x is computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _resolve_epsilon(x: torch.Tensor, epsilon: float | None) -> float:
    """Returns epsilon; for None what torch.nn.functional.rms_norm adds.

    That is the machine epsilon of the dtype that it computes in (documentation of
    torch.nn.RMSNorm, https://docs.pytorch.org/docs/stable/generated/torch.nn.RMSNorm).
    """
    if epsilon is not None:
        return epsilon
    return 2.0**-52 if x.dtype == torch.float64 else 2.0**-23


def _shifted(weight: torch.Tensor | None, offset: float) -> torch.Tensor | None:
    if weight is None or offset == 0.0:
        return weight
    # In at least float32: 1 + w is not representable in float16 or bfloat16.
    return weight.to(_compute_dtype(weight)) + offset


def _range_safe(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float
) -> torch.Tensor:
    """RMSNorm of rows that are scaled by their largest magnitude.

    With m = max(max|x|, sqrt(epsilon)) and z = x / m,

        y = z / sqrt(mean(z**2) + (sqrt(epsilon) / m)**2) * weight

    is RMSNorm in real arithmetic, and nothing in it leaves [-1, 1] before weight.
    """
    root = math.sqrt(epsilon)
    computed = x.to(_compute_dtype(x))
    # y does not depend on m, so neither do its derivatives.
    magnitude = computed.detach().abs().amax(dim=-1, keepdim=True).clamp(min=root)
    # A row with an infinity gives zeros and NaN, as in the plain form.
    magnitude = magnitude.masked_fill(magnitude.isinf(), 1.0)
    z = computed / magnitude
    mean_square = z.square().mean(dim=-1, keepdim=True)
    y = z * torch.rsqrt(mean_square + (root / magnitude).square())
    if weight is not None:
        y = y * weight.to(y.dtype)
    return y.to(x.dtype)


def compute(
    x: torch.Tensor,
    normalized_shape: Shape,
    weight: torch.Tensor | None,
    epsilon: float | None,
    range_safe: bool,
    weight_offset: float,
) -> torch.Tensor:
    """Computes RMSNorm; arguments as for `normalize`. TorchScript compiles it."""
    weight = _shifted(weight, weight_offset)
    if range_safe:
        return _range_safe(x, weight, _resolve_epsilon(x, epsilon))
    if weight is not None and weight.dtype != x.dtype:
        # As torch.rms_norm, which warns about two dtypes.
        dtype = _compute_dtype(x)
        epsilon = _resolve_epsilon(x, epsilon)
        y = torch.rms_norm(x.to(dtype), normalized_shape, weight.to(dtype), epsilon)
        return y.to(x.dtype)
    return torch.rms_norm(x, normalized_shape, weight, epsilon)


def _autocast(x: torch.Tensor) -> torch.Tensor:
    """Casts x as autocast does for torch.rms_norm."""
    device = x.device.type
    if device in _AUTOCAST_TO_FLOAT32 and torch.is_autocast_enabled(device):
        return x.to(_compute_dtype(x))
    return x


def normalize(
    x: torch.Tensor,
    normalized_shape: Shape,
    weight: torch.Tensor | None,
    epsilon: float | None,
    range_safe: bool = False,
    weight_offset: float = 0.0,
) -> torch.Tensor:
    """Computes or emits RMSNorm: the one body of `rms_norm` and of `nn.RMSNorm`.

    Args:
      x: As for `rms_norm`.
      normalized_shape: The required last dimension of x, a sequence of one size.
      weight: As for `rms_norm`.
      epsilon: As for `rms_norm`, validated.
      range_safe: As for `rms_norm`.
      weight_offset: Added to the weight in at least float32; 0 without a weight.

    Returns:
      As `rms_norm`.
    """
    if _is_exporting() and _exports():
        weight = _shifted(weight, weight_offset)
        return _emit(x, normalized_shape, weight, epsilon)
    if (
        range_safe
        or weight_offset
        or (weight is not None and weight.dtype is not x.dtype)
    ):
        x = _autocast(x)
        return compute(x, normalized_shape, weight, epsilon, range_safe, weight_offset)
    return _torch_rms_norm(x, normalized_shape, weight, epsilon)


def add_normalize(
    x: torch.Tensor,
    residual: torch.Tensor,
    normalized_shape: Shape,
    weight: torch.Tensor | None,
    epsilon: float | None,
    range_safe: bool = False,
    weight_offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds, then computes or emits RMSNorm; arguments as for `normalize`.

    Returns:
      The pair (x + residual, its RMSNorm).
    """
    if residual is None:
        # torch.fx.symbolic_trace took the default of a module's forward for a tensor.
        return normalize(
            x, normalized_shape, weight, epsilon, range_safe, weight_offset
        )
    if _is_exporting() and _exports():
        weight = _shifted(weight, weight_offset)
        return _emit_add(x, residual, normalized_shape, weight, epsilon)
    total = x + residual
    y = normalize(total, normalized_shape, weight, epsilon, range_safe, weight_offset)
    return total, y


# torch.fx.symbolic_trace keeps a call to these, so that what it returns is exported
# as the operators, too.
torch.fx.wrap("normalize")
torch.fx.wrap("add_normalize")


def _validate_shape(x: torch.Tensor, normalized_shape: Shape) -> None:
    if tuple(x.shape[-1:]) != tuple(normalized_shape):
        raise ValueError(
            f"rms_norm: the last dimension of x must be {tuple(normalized_shape)}, got"
            f" shape {tuple(x.shape)}"
        )


def _operator_weight(
    x: torch.Tensor, weight: torch.Tensor | None
) -> torch.Tensor | None:
    """Returns the weight in a dtype that the operators take."""
    if weight is None or weight.dtype in (x.dtype, torch.float32):
        return weight
    return weight.to(_compute_dtype(x))


def _emit(
    x: torch.Tensor,
    normalized_shape: Shape,
    weight: torch.Tensor | None,
    epsilon: float | None,
) -> torch.Tensor:
    """Emits the operator, with the dtype that torch.nn.functional.rms_norm returns."""
    _validate_shape(x, normalized_shape)
    epsilon = _resolve_epsilon(x, epsilon)
    x = _autocast(x)
    y: torch.Tensor = torch.ops.ai_edge_torch.custom_rms_norm(
        x, _operator_weight(x, weight), epsilon
    )
    return y


def _emit_add(
    x: torch.Tensor,
    residual: torch.Tensor,
    normalized_shape: Shape,
    weight: torch.Tensor | None,
    epsilon: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Emits one operator, or two where x + residual promotes, broadcasts or casts."""
    same = x.dtype == residual.dtype and x.shape == residual.shape
    if not same or torch.is_autocast_enabled(x.device.type):
        total = x + residual
        return total, _emit(total, normalized_shape, weight, epsilon)
    _validate_shape(x, normalized_shape)
    total, y = torch.ops.ai_edge_torch.custom_add_rms_norm(
        x, residual, _operator_weight(x, weight), _resolve_epsilon(x, epsilon)
    )
    return total, y


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    epsilon: float | None = 1e-6,
    *,
    range_safe: bool = False,
) -> torch.Tensor:
    """RMSNorm over the last dimension; one operator in an exported program.

    The statistic and the product with weight are computed in float32 (in float64 for
    x in float64) and rounded once, to x's dtype, in every mode.

    Args:
      x: Tensor of shape [..., hidden size], at least 1-D, of dtype float32,
        float64, float16 or bfloat16, in any memory layout. Zero rows are allowed.
      weight: Scale of shape [hidden size], of any floating dtype; None for none.
      epsilon: Added to the mean square; finite and > 0. None for the machine epsilon
        of the dtype computed in, as in torch.nn.functional.rms_norm.
      range_safe: Whether rows whose squares leave the range of float32, those with
        magnitudes above 1.8e19 or with all magnitudes below 1e-19 and an epsilon as
        small, are right, too: computes with the row scaled by its largest magnitude.
        The kernels behind the exported operator always are range-safe.

    Returns:
      x / sqrt(mean(x**2, dim=-1) + epsilon) * weight, of x's shape and dtype (under
      an autocast that computes norms in float32, of that dtype, as in PyTorch).

    Raises:
      RuntimeError: Shapes or devices do not match (from PyTorch).
      TypeError: While exporting, x has a dtype that the operator does not support.
      ValueError: epsilon is not as stated; while exporting, a shape or a device.
    """
    if epsilon is not None and not 0.0 < epsilon < _INFINITY:
        validate_epsilon(epsilon)
    return normalize(x, (x.shape[-1],), weight, epsilon, range_safe)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None = None,
    epsilon: float | None = 1e-6,
    *,
    range_safe: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual addition followed by RMSNorm; one operator in an exported program.

    Args:
      x: As for `rms_norm`.
      residual: Tensor that can be added to x; exported as one operator with the norm
        where it has x's shape and dtype.
      weight: As for `rms_norm`.
      epsilon: As for `rms_norm`.
      range_safe: As for `rms_norm`; the sum itself has the range of its dtype.

    Returns:
      The pair (total, y): total = x + residual, of the dtype and shape that PyTorch
      gives the sum, and y = rms_norm(total, weight, epsilon).

    Raises:
      RuntimeError: Shapes or devices do not match (from PyTorch).
      TypeError: While exporting, the sum has a dtype that the operator does not
        support.
      ValueError: epsilon is not as stated; while exporting, a shape or a device.
    """
    if epsilon is not None:
        validate_epsilon(epsilon)
    return add_normalize(x, residual, (x.shape[-1],), weight, epsilon, range_safe)


# The operators. A kernel for the key Autograd that calls torch's function is faster
# than `torch.library.custom_op` or `register_autograd` (docs/pytorch.md, Speed), and
# whatever differentiates, maps or compiles sees torch's operator.


def _rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float = 1e-6
) -> torch.Tensor:
    dtype = x.dtype
    if weight is not None and weight.dtype is dtype and weight.ndim == 1:
        # As _validate, in half of its time; torch compares the shapes.
        shape = weight.shape
        if (
            dtype not in FLOATING_DTYPES
            or shape[0] == 0
            or weight.device != x.device
            or not 0.0 < epsilon < _INFINITY
        ):
            _validate(x, weight, epsilon)
        try:
            y = _torch_rms_norm(x, shape, weight, epsilon)
        except RuntimeError:
            _validate(x, weight, epsilon)
            raise
    else:
        hidden_size = _validate(x, weight, epsilon)
        y = compute(x, (hidden_size,), weight, epsilon, False, 0.0)
    if y.dtype is not dtype:  # An autocast is active.
        y = y.to(dtype)
    # As the fake implementation promises.
    return y.contiguous()


def _add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    _validate_residual(x, residual)
    total = (x + residual).contiguous()
    return total, _rms_norm(total, weight, epsilon)


def _rms_norm_fake(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float = 1e-6
) -> torch.Tensor:
    _validate(x, weight, epsilon)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _add_rms_norm_fake(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    _validate(x, weight, epsilon)
    _validate_residual(x, residual)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return total, torch.empty_like(total)


def _register(
    name: str,
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
) -> None:
    """Defines an operator that is opaque while a program is exported, and only then."""
    qualified = f"ai_edge_torch::{name}"
    torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(qualified, "CompositeExplicitAutograd", implementation)
    torch.library.register_fake(qualified, fake)
    operator = getattr(torch.ops.ai_edge_torch, name).default

    class Opaque(torch.autograd.Function):
        """The operator as one node, with the derivative of its implementation."""

        @staticmethod
        def forward(*inputs: Any) -> Any:
            # As `torch.library.custom_op` does; there is no public way to call what
            # is registered below Autograd.
            with torch._C._AutoDispatchBelowAutograd():  # noqa: SLF001
                return operator(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            *tensors, ctx.epsilon = inputs
            ctx.save_for_backward(*tensors)

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
            needed = ctx.needs_input_grad[:-1]
            with torch.enable_grad():
                tensors = [
                    t.detach().requires_grad_() if need else t
                    for t, need in zip(ctx.saved_tensors, needed, strict=True)
                ]
                outputs = implementation(*tensors, ctx.epsilon)
                found = iter(
                    torch.autograd.grad(
                        outputs,
                        [t for t, need in zip(tensors, needed, strict=True) if need],
                        grads,
                    )
                )
            return *(next(found) if need else None for need in needed), None

    def autograd(*inputs: Any) -> Any:
        # Transforms of torch.func do not see into an opaque operator.
        if (
            not _is_exporting() or torch._C._are_functorch_transforms_active()  # noqa: SLF001
        ):
            return implementation(*inputs)
        tensors = len(operator._schema.arguments) - 1  # noqa: SLF001
        epsilon = inputs[tensors] if len(inputs) > tensors else 1e-6
        return Opaque.apply(*inputs[:tensors], epsilon)  # type: ignore[no-untyped-call]

    torch.library.impl(
        qualified, ("Autograd", "FuncTorchBatchedDecomposition"), autograd
    )


_register(
    "custom_rms_norm",
    "(Tensor x, Tensor? weight, float epsilon=1e-6) -> Tensor",
    _rms_norm,
    _rms_norm_fake,
)
_register(
    "custom_add_rms_norm",
    "(Tensor x, Tensor residual, Tensor? weight, float epsilon=1e-6)"
    " -> (Tensor, Tensor)",
    _add_rms_norm,
    _add_rms_norm_fake,
)
