"""Replaces the RMSNorm modules of a PyTorch model by ours.

A norm is recognized by its structure and then measured: a module without children and
buffers that has an epsilon, at most two parameters of one dimension and a forward of
one argument is run with random parameters on random rows; what it computes must be

    x / sqrt(mean(x**2, dim=-1) + epsilon) * (weight + offset) [* (scale + offset)]

That covers torch.nn.RMSNorm, litert-torch's generative layer and those of Hugging Face
Transformers (Llama, Qwen, Gemma with 1 + weight, Gemma 4 without weight, Mistral, Phi,
SmolLM, T5's LayerNorm, ...), whatever the class is called.
"""

import copy
import dataclasses
import inspect
import re

import torch

from ai_edge_rms_norm.ops import nn, rms_norm

__all__ = ["SkippedModule", "ReplaceReport", "ReplacedModule", "replace_rms_norm"]

_NAME = re.compile(r"rms_?norm", re.IGNORECASE)
# Where a module without parameters does not say what it expects.
_HIDDEN_SIZE = 64
# The float32 arithmetic of both sides, in another order.
_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class ReplacedModule:
    """A module that was replaced.

    Attributes:
      name: Its name in the model, as in `named_modules`.
      type: The name of its class before.
      hidden_size: Size of the weight; None without a weight.
      epsilon: Added to the mean square.
      weight_offset: Added to the weight; 0 without a weight.
    """

    name: str
    type: str
    hidden_size: int | None
    epsilon: float
    weight_offset: float


@dataclasses.dataclass(frozen=True)
class SkippedModule:
    """A module that is called an RMSNorm and was left alone.

    Attributes:
      name: Its name in the model.
      type: The name of its class.
      reason: Why, in words.
    """

    name: str
    type: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ReplaceReport:
    """What `replace_rms_norm` did; both lists in the order of `named_modules`."""

    replaced: tuple[ReplacedModule, ...]
    skipped: tuple[SkippedModule, ...]


class ScaledRMSNorm(torch.nn.Module):
    """RMSNorm with two weights, as litert-torch's layer has with `with_scale`.

    Computes x / rms(x) * (weight + weight_offset) * (scale + scale_offset).
    """

    def __init__(
        self,
        weight: torch.nn.Parameter,
        scale: torch.nn.Parameter,
        eps: float,
        weight_offset: float,
        scale_offset: float,
    ):
        super().__init__()
        self.weight, self.scale = weight, scale
        self.eps = eps
        self.weight_offset, self.scale_offset = weight_offset, scale_offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalizes x, of shape [..., hidden size]."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        weight = self.weight.to(dtype) + self.weight_offset
        return rms_norm.rms_norm(
            x, weight * (self.scale.to(dtype) + self.scale_offset), self.eps
        )

    def extra_repr(self) -> str:
        return (
            f"{len(self.weight)}, eps={self.eps}, weight_offset={self.weight_offset},"
            f" scale_offset={self.scale_offset}"
        )


class _NoRmsNormError(Exception):
    """The message says what is not as in an RMSNorm."""


def _default_epsilon(dtype: torch.dtype) -> float:
    """Returns what torch.nn.RMSNorm adds when its eps is None.

    The resolution of dtype; in later versions that of the dtype it computes in.
    """
    resolutions = {
        torch.finfo(t).eps for t in (dtype, torch.promote_types(dtype, torch.float32))
    }
    # Normal in float16, and its square not far from either.
    x = torch.full((8,), 2.0**-12, dtype=dtype)
    y = torch.nn.functional.rms_norm(x, (8,)).double()
    measured = float((x.double().square() * (y**-2 - 1)).mean())
    return min(resolutions, key=lambda eps: abs(eps - measured))


def _epsilons(module: torch.nn.Module, dtype: torch.dtype | None) -> list[float]:
    """Lists what may be the epsilon of a module."""
    found = [
        value
        for name, value in vars(module).items()
        if "eps" in name.lower() and isinstance(value, float) and value > 0
    ]
    if isinstance(module, torch.nn.RMSNorm) and module.eps is None:
        if dtype is None:
            raise _NoRmsNormError("its epsilon depends on the dtype of the input")
        if dtype not in rms_norm.FLOATING_DTYPES:
            raise _NoRmsNormError(f"its weight has the dtype {dtype}")
        found.append(_default_epsilon(dtype))
    return found


def _parameters(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Returns the weights, the one called `weight` first."""
    parameters = dict(module.named_parameters(recurse=False))
    names = sorted(parameters, key=lambda name: (name != "weight", name))
    return {name: parameters[name] for name in names}


def _check_structure(module: torch.nn.Module) -> None:
    if next(module.children(), None) is not None:
        raise _NoRmsNormError("it has submodules")
    if next(module.buffers(), None) is not None:
        raise _NoRmsNormError("it has buffers")
    parameters = _parameters(module).values()
    shapes = {tuple(parameter.shape) for parameter in parameters}
    if len(parameters) > 2 or len(shapes) > 1 or any(len(s) != 1 for s in shapes):
        raise _NoRmsNormError(
            "expected at most two parameters of the same shape [hidden size], it has"
            f" {[tuple(p.shape) for p in parameters]}"
        )
    if len(parameters) == 2 and set(_parameters(module)) != {"weight", "scale"}:
        raise _NoRmsNormError(
            "expected two parameters to be weight and scale, they are"
            f" {sorted(_parameters(module))}"
        )
    if any(parameter.is_meta for parameter in parameters):
        raise _NoRmsNormError("its parameters are on the device meta")
    arguments = inspect.signature(module.forward).parameters
    if len(arguments) != 1:
        raise _NoRmsNormError(
            f"its forward takes {', '.join(arguments) or 'nothing'}; expected x alone"
        )
    # Pre-hooks and backward hooks included; on a new module they would be lost.
    if any("hooks" in name and value for name, value in vars(module).items()):
        raise _NoRmsNormError("it has hooks")


def _measured_offset(value: torch.Tensor) -> float:
    """Returns the one number in a tensor, free of the noise of the measurement."""
    offset = float(value.mean())
    rounded = round(offset, 4)
    return rounded if abs(offset - rounded) < _TOLERANCE else offset


@torch.no_grad()
def _measure(module: torch.nn.Module, epsilon: float) -> list[float]:
    """Returns the offsets of the parameters of a module that computes rms_norm.

    Raises:
      _NoRmsNormError: It computes something else.
    """
    probe = copy.deepcopy(module).eval().float()
    if isinstance(probe, torch.nn.RMSNorm):
        probe.eps = epsilon  # None would mean another one for the copy's dtype.
    parameters = list(_parameters(probe).values())
    device = parameters[0].device if parameters else torch.device("cpu")
    hidden_size = (
        parameters[0].shape[0]
        if parameters
        else getattr(module, "normalized_shape", (_HIDDEN_SIZE,))[-1]
    )
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(device)

    x = random(2, 3, hidden_size)
    # Rows of different magnitude; in some, epsilon counts as much as the mean square.
    x *= torch.logspace(-1, 1, 6, device=device).reshape(2, 3, 1)
    x[1] *= epsilon**0.5
    normalized = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)

    def run(values: list[torch.Tensor]) -> torch.Tensor:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
        try:
            y = probe(x.clone())
        except Exception as error:  # Whatever a forward of some other kind raises.
            raise _NoRmsNormError(
                f"it cannot be run on {list(x.shape)}: {error}"
            ) from (error)
        if not isinstance(y, torch.Tensor) or y.shape != x.shape:
            raise _NoRmsNormError("its output has not the shape of its input")
        return y

    def ratio(*values: float) -> torch.Tensor:
        """Returns y / normalized with constant parameters."""
        values = [torch.full_like(parameters[0], v) for v in values]
        y = run(values)
        return (y * normalized).sum(-1) / normalized.square().sum(-1)

    if not parameters:
        offsets = []
    elif len(parameters) == 1:
        offsets = [_measured_offset(ratio(0.0))]
    else:
        # (w + a) * (s + b) at three points.
        origin, weight, scale = ratio(0.0, 0.0), ratio(1.0, 0.0), ratio(0.0, 1.0)
        offsets = [_measured_offset(scale - origin), _measured_offset(weight - origin)]
    values = [random(hidden_size) for _ in parameters]
    expected = normalized
    for value, offset in zip(values, offsets, strict=True):
        expected = expected * (value + offset)
    error = ((run(values) - expected).abs() / (expected.abs() + _TOLERANCE)).max()
    if not error <= _TOLERANCE:  # NaN, too.
        raise _NoRmsNormError(
            "it computes something else: the largest relative difference is"
            f" {error:.1e}"
        )
    return offsets


def _replacement(module: torch.nn.Module) -> tuple[torch.nn.Module, float, float]:
    """Returns our module for a norm, its epsilon and the offset of its weight.

    Raises:
      _NoRmsNormError: It is no RMSNorm.
    """
    _check_structure(module)
    parameters = _parameters(module)
    dtype = next((p.dtype for p in parameters.values()), None)
    reason = _NoRmsNormError("it has no attribute of type float that is its epsilon")
    for epsilon in _epsilons(module, dtype):
        try:
            offsets = _measure(module, epsilon)
        except _NoRmsNormError as error:
            reason = error
            continue
        if len(parameters) == 2:
            new = ScaledRMSNorm(*parameters.values(), epsilon, *offsets)
        else:
            (offset,) = offsets or (0.0,)
            size = next((p.shape[0] for p in parameters.values()), _HIDDEN_SIZE)
            # Without storage: the parameter is the old module's.
            new = nn.RMSNorm(
                size, epsilon, bool(parameters), offset, device=torch.device("meta")
            )
            if parameters:
                (new.weight,) = parameters.values()
        new.train(module.training)
        return new, epsilon, offsets[0] if offsets else 0.0
    raise reason


def replace_rms_norm(model: torch.nn.Module) -> ReplaceReport:
    """Replaces every RMSNorm in a model by `ai_edge_rms_norm.RMSNorm`, in place.

    Parameters are shared, not copied, so that optimizers stay as they are, and the
    `state_dict` does, too, unless a weight has another name: ours is called `weight`.
    A module that is used in several places stays one. Ours returns the dtype of
    its input and rounds once; in half precision, modules that round in between differ
    from it by that rounding.

    Args:
      model: The model; modules inside of it are replaced.

    Returns:
      What was replaced, and what is called an RMSNorm and was not, with the reason.

    Raises:
      TypeError: `model` is no torch.nn.Module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    replaced, skipped = [], []
    ours = (nn.RMSNorm, ScaledRMSNorm)
    new_modules: dict[torch.nn.Module, torch.nn.Module] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, ours):
            continue
        kind = type(module).__name__
        try:
            new, epsilon, offset = _replacement(module)
            if module is model:
                raise _NoRmsNormError("it is the model itself, not a part of it")
        except _NoRmsNormError as error:
            if isinstance(module, torch.nn.RMSNorm) or _NAME.search(kind):
                skipped.append(SkippedModule(name, kind, str(error)))
            continue
        new_modules[module] = new
        weight = getattr(new, "weight", None)
        hidden_size = None if weight is None else weight.shape[0]
        replaced.append(ReplacedModule(name, kind, hidden_size, epsilon, offset))
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in new_modules:
                setattr(parent, name, new_modules[child])
    return ReplaceReport(tuple(replaced), tuple(skipped))
