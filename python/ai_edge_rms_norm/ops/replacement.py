"""The module that takes the place of a norm: a drop-in for it.

It is an `ai_edge_rms_norm.RMSNorm` whose forward names x as the former one did, with
the former parameters and buffers under their names, the former attributes, and results
of the former dtype.
"""

import functools
import linecache
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ai_edge_rms_norm.ops import nn, rms_norm

__all__ = ["RESULT_DTYPES", "new_norm", "normalize_as", "result_dtype"]

if TYPE_CHECKING:
    Shape = Sequence[int]
else:
    Shape = list[int]  # TorchScript knows no other sequence.

# The rules of `result_dtype`.
RESULT_DTYPES = ("x", "promoted", "float32", "weight")


# TorchScript compiles this and what it calls.
def result_dtype(rule: str, x: torch.dtype, weight: torch.dtype) -> torch.dtype:
    """Returns the dtype of the result of a norm.

    Args:
      rule: "x" for the dtype of x, as in Gemma; "promoted" for that of x * weight, as
        in Llama; "float32" for the same, but at least float32, as in litert-torch;
        "weight" for that of the weight if it is a half type, else "promoted", as in T5.
      x: The dtype of x.
      weight: The dtype of the weight; without one, that of x.
    """
    if rule == "x":
        return x
    if rule == "weight" and (weight == torch.float16 or weight == torch.bfloat16):
        return weight
    dtype = torch.promote_types(x, weight)
    if rule == "float32":
        dtype = torch.promote_types(dtype, torch.float32)
    return dtype


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def normalize_as(
    x: torch.Tensor,
    normalized_shape: Shape | None,
    weight: torch.Tensor | None,
    scale: torch.Tensor | None,
    epsilon: float | None,
    weight_offset: float,
    scale_offset: float,
    rule: str,
) -> torch.Tensor:
    """Computes or emits x / rms(x) * (weight + weight_offset) * (scale + scale_offset).

    Args:
      x: Tensor of shape [..., hidden size].
      normalized_shape: The hidden size, a sequence of one int; None for any.
      weight: Tensor of shape [hidden size], or None.
      scale: Another one; None without a weight.
      epsilon: Added to the mean square; None for that of `torch.nn.RMSNorm`.
      weight_offset: Added to the weight in at least float32.
      scale_offset: Added to the scale in at least float32.
      rule: That of `result_dtype` for the dtype of the result.

    Returns:
      Tensor of x's shape. It is computed in x's dtype or in that of the result,
      whichever is wider, and rounded once.
    """
    dtype = result_dtype(rule, x.dtype, x.dtype if weight is None else weight.dtype)
    if weight is not None and scale is not None:
        weight = _at_least_float32(weight) + weight_offset
        weight = weight * (_at_least_float32(scale) + scale_offset)
        weight_offset = 0.0
    computed = torch.promote_types(x.dtype, dtype)
    if computed != x.dtype:
        x = x.to(computed)
    shape = [x.shape[-1]] if normalized_shape is None else normalized_shape
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        y = rms_norm.compute(x, shape, weight, epsilon, False, weight_offset)
    else:
        y = rms_norm.normalize(x, shape, weight, epsilon, False, weight_offset)
    return y if dtype == computed else y.to(dtype)


# torch.fx.symbolic_trace keeps a call to it; its graph has no branches.
torch.fx.wrap("normalize_as")

_FORWARD = """\
def forward(self, {argument}: torch.Tensor) -> torch.Tensor:
    return normalize_as(
        {argument},
        {shape},
        {weight},
        {scale},
        self.eps,
        self.weight_offset,
        self.scale_offset,
        self.result_dtype,
    )
"""
_WEIGHT = """
@property
def weight(self) -> torch.Tensor:
    return self.{weight}
"""


class ReplacedRMSNorm(nn.RMSNorm):
    """The base of the replacements.

    Attributes:
      scale_offset: Added to the second factor of the weight; 0 without one.
      result_dtype: The rule for the dtype of the result.
      epsilon_buffer: The name of the buffer that holds epsilon, or None.
    """

    scale_offset: float
    result_dtype: str
    epsilon_buffer: str | None

    def __prepare_scriptable__(self) -> torch.nn.Module:
        return self

    def read_epsilon(self) -> None:
        """Makes epsilon what its buffer holds."""
        if self.epsilon_buffer is not None:
            self.eps = float(self.get_buffer(self.epsilon_buffer))


@functools.cache
def _norm_type(
    argument: str, factors: tuple[str, ...], any_size: bool
) -> type[ReplacedRMSNorm]:
    """Returns a class whose forward has a parameter of the given name.

    Its source is generated, since `torch.jit.script` and `torch.fx` read names from it.
    """
    weight, scale = (f"self.{name}" for name in (*factors, "", "")[:2])
    source = _FORWARD.format(
        argument=argument,
        shape="None" if any_size else "self.normalized_shape",
        weight=weight if factors else "None",
        scale=scale if len(factors) > 1 else "None",
    )
    if factors and "weight" not in factors:
        source += _WEIGHT.format(weight=factors[0])
    file = f"<{__name__}: {argument}, {', '.join(factors)}, {any_size}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    members: dict[str, Any] = {}
    exec(compile(source, file, "exec"), globals(), members)

    def reduce(self: torch.nn.Module) -> tuple[Any, ...]:
        return _unpickled, (argument, factors, any_size), vars(self)

    members |= {
        "__doc__": "An `ai_edge_rms_norm.RMSNorm` in the place of another norm.",
        "__module__": __name__,
        "__reduce__": reduce,
    }
    return type(nn.RMSNorm.__name__, (ReplacedRMSNorm,), members)


def _unpickled(
    argument: str, factors: tuple[str, ...], any_size: bool
) -> ReplacedRMSNorm:
    kind = _norm_type(argument, factors, any_size)
    return kind.__new__(kind)


def _read_epsilon(module: ReplacedRMSNorm, _: object) -> None:
    module.read_epsilon()


def new_norm(
    module: torch.nn.Module,
    argument: str,
    hidden_size: int | None,
    factors: dict[str, float],
    epsilon: float | None,
    epsilon_buffer: str | None,
    rule: str,
) -> ReplacedRMSNorm:
    """Returns the module that takes the place of a norm.

    Args:
      module: The norm; its parameters and buffers are shared.
      argument: The name of x in its forward.
      hidden_size: The size of its rows; None for any.
      factors: Names of the at most two factors of its weight, with their offsets.
      epsilon: Added to the mean square; None for that of `torch.nn.RMSNorm`.
      epsilon_buffer: The buffer that holds epsilon, which is read again after
        load_state_dict; None if there is none.
      rule: That of `result_dtype` for the dtype of the result.
    """
    kind = _norm_type(argument, tuple(factors), hidden_size is None)
    new = kind.__new__(kind)
    torch.nn.Module.__init__(new)
    new.normalized_shape = () if hidden_size is None else (hidden_size,)
    new.eps = epsilon
    new.elementwise_affine = bool(factors)
    new.range_safe = False
    new.weight_offset, new.scale_offset = (*factors.values(), 0.0, 0.0)[:2]
    new.result_dtype = rule
    new.epsilon_buffer = epsilon_buffer
    for name, value in vars(module).items():
        vars(new).setdefault(name, value)
    new.training = module.training
    for name, parameter in module.named_parameters():
        new.register_parameter(name, parameter)
    persistent = module.state_dict()
    for name, buffer in module.named_buffers():
        new.register_buffer(name, buffer, persistent=name in persistent)
    if not hasattr(new, "weight"):
        new.register_parameter("weight", None)
    if epsilon_buffer is not None:
        new.register_load_state_dict_post_hook(_read_epsilon)  # type: ignore[no-untyped-call]
    return new
