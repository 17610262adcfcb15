"""Replaces the RMSNorm modules of a PyTorch model by `ai_edge_rms_norm.RMSNorm`.

A norm is known by what it computes, not by its name: its forward is traced and proven
(`ai_edge_rms_norm.ops.proof`) to be, for every shape of x,

    x / sqrt(mean(x**2, dim=-1) + epsilon) * (weight + offset) [* (scale + offset)]

and then measured against its replacement, in every pair of dtypes and under autocast.
That covers torch.nn.RMSNorm, litert-torch's generative layer and those of Hugging Face
Transformers (Llama, Qwen, Gemma with 1 + weight, Gemma 4 without weight, Mistral, Phi,
SmolLM, T5's LayerNorm, ...), whatever the class is called.
"""

import dataclasses
import re
from collections.abc import Hashable, Iterator
from typing import Any

import torch

from ai_edge_rms_norm import tables
from ai_edge_rms_norm.ops import nn, proof, replacement

__all__ = ["ReplaceReport", "ReplacedModule", "SkippedModule", "replace_rms_norm"]

_NAME = re.compile(r"rms_?norm", re.IGNORECASE)
# The float32 arithmetic of both sides, in another order.
_TOLERANCE = 1e-5
# In units of the machine epsilon of a half type: modules round up to four times.
_HALF_TOLERANCE = 8
_HALF_DTYPES = (torch.float16, torch.bfloat16)
# Rows of the measurement; 2-D, so that the last dimension is the only one that fits.
_ROWS = 6


@dataclasses.dataclass(frozen=True)
class ReplacedModule:
    """A module that was replaced.

    Attributes:
      name: Its name in the model, as in `named_modules`.
      type: The name of its class before.
      hidden_size: Size of the weight; None without a weight.
      epsilon: Added to the mean square; in float32 where it depends on the dtype.
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
    """The result of `replace_rms_norm`; both lists in the order of `named_modules`."""

    replaced: tuple[ReplacedModule, ...]
    skipped: tuple[SkippedModule, ...]

    def _repr_html_(self) -> str:
        title = f"{len(self.replaced)} replaced, {len(self.skipped)} left alone"
        columns = ("module", "class", "hidden size", "epsilon", "offset", "result")
        rows = [
            [
                module.name,
                module.type,
                "" if module.hidden_size is None else str(module.hidden_size),
                repr(module.epsilon),
                repr(module.weight_offset),
                "replaced",
            ]
            for module in self.replaced
        ]
        rows += [
            [module.name, module.type, "", "", "", f"left alone: {module.reason}"]
            for module in self.skipped
        ]
        return tables.html_table(title, columns, rows)


@dataclasses.dataclass(frozen=True)
class _Run:
    """The inputs that the measurement runs a norm with.

    Attributes:
      x: The dtype of x.
      weight: That of the parameters.
      autocast: That of an autocast around the call, or None.
    """

    x: torch.dtype
    weight: torch.dtype
    autocast: torch.dtype | None = None

    def __str__(self) -> str:
        under = f" under autocast to {self.autocast}" if self.autocast else ""
        return f"with x in {self.x} and parameters in {self.weight}{under}"


def _runs(tensors: dict[str, torch.Tensor]) -> Iterator[_Run]:
    for x, weight in proof.dtype_pairs(tensors):
        yield _Run(x, weight)
    for half in _HALF_DTYPES:
        for x in (torch.float32, half):
            yield _Run(x, torch.float32 if tensors else x, half)


def _inputs(
    module: torch.nn.Module, hidden_size: int, run: _Run
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Returns random parameters by name, and random rows of different magnitude."""
    generator, device = torch.Generator().manual_seed(0), proof.device_of(module)

    def random(shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        value = torch.randn(
            shape, generator=generator, dtype=torch.float32, device="cpu"
        )
        return value.to(device=device, dtype=dtype)

    tensors = {
        name: random(tensor.shape, run.weight)
        for name, tensor in proof.tensors_of(module).items()
    }
    x = random((_ROWS, hidden_size), run.x)
    # Squares of small numbers have few digits in half types.
    is_half = {run.x, run.weight, run.autocast}.intersection(_HALF_DTYPES)
    exponents = torch.linspace(
        0 if is_half else -3, 1, _ROWS, dtype=torch.float32, device=device
    )
    return tensors, x * (10**exponents).to(run.x).unsqueeze(-1)


def _call(
    norm: proof.StandIn, tensors: dict[str, torch.Tensor], x: torch.Tensor, run: _Run
) -> torch.Tensor:
    device = x.device.type
    with (
        proof.default_state(x.device),
        torch.autocast(device, run.autocast, enabled=run.autocast is not None),
    ):
        y = norm(tensors, x.clone())
    assert isinstance(y, torch.Tensor)
    return y


def _tolerance(run: _Run, y: torch.Tensor) -> float:
    return max(
        [
            _TOLERANCE,
            *(
                _HALF_TOLERANCE * torch.finfo(dtype).eps
                for dtype in (run.x, run.weight, run.autocast, y.dtype)
                if dtype in _HALF_DTYPES
            ),
        ]
    )


def _measure(module: torch.nn.Module, new: torch.nn.Module, hidden_size: int) -> None:
    """Compares a norm with its replacement.

    Raises:
      NotProvenError: The results differ, or their dtypes.
    """
    before = proof.StandIn(module, module.training)
    after = proof.StandIn(new, module.training)
    for run in _runs(proof.tensors_of(module)):
        tensors, x = _inputs(module, hidden_size, run)
        try:
            expected = _call(before, tensors, x, run)
        except (RuntimeError, TypeError):
            continue  # Not implemented, or not for these dtypes.
        actual = _call(after, tensors, x, run)
        if actual.dtype != expected.dtype:
            raise proof.NotProvenError(
                f"{run} its result is {expected.dtype}, that of its replacement would"
                f" be {actual.dtype}"
            )
        tolerance = _tolerance(run, expected)
        actual, expected = actual.double(), expected.double()
        error = (actual - expected).abs() / (expected.abs() + tolerance)
        if not error.max() <= tolerance:  # NaN, too.
            raise proof.NotProvenError(
                f"{run} its result differs from that of its replacement by"
                f" {error.max():.1e}"
            )


def _new(module: torch.nn.Module, proven: proof.Proof) -> nn.RMSNorm:
    return replacement.new_norm(
        module,
        proven.argument,
        proven.hidden_size,
        {factor.name: factor.offset for factor in proven.factors},
        proven.epsilon,
        proven.epsilon_buffer,
        proven.rule,
    )


class _Replacements:
    """The replacements of modules; those of one kind are proven once."""

    def __init__(self) -> None:
        self._proofs: dict[Hashable, proof.Proof | str] = {}

    def of(self, module: torch.nn.Module) -> nn.RMSNorm:
        """Returns what takes the place of a norm.

        Raises:
          NotProvenError: It is not known to be an RMSNorm.
        """
        try:
            key = _kind(module)
            result = self._proofs.get(key) if key is not None else None
            if result is None:
                result = self._prove(module)
                if key is not None:
                    self._proofs[key] = result
            if isinstance(result, str):
                raise proof.NotProvenError(result)
            return _new(module, result)
        except proof.NotProvenError:
            raise
        except Exception as error:  # One module must not keep others from it.
            raise proof.NotProvenError(
                f"it could not be examined: {proof.summary(error)}"
            ) from error

    @staticmethod
    def _prove(module: torch.nn.Module) -> proof.Proof | str:
        try:
            proven = proof.prove(module)
            _measure(module, _new(module, proven), proven.hidden_size or 64)
        except proof.NotProvenError as error:
            return str(error)
        return proven


_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


def _kind(module: torch.nn.Module) -> Hashable | None:
    """Returns all that a forward can depend on; None if that cannot be told.

    These are the class and the attributes, as long as they are numbers, text and the
    shapes of parameters.
    """
    items: list[Any] = [type(module)]
    for name, value in vars(module).items():
        if name == "_parameters":
            items += [
                (key, tuple(p.shape), p.dtype, p.device) if p is not None else (key,)
                for key, p in value.items()
            ]
        elif isinstance(value, _PLAIN):
            items.append((name, type(value), value))
        elif isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value):
            items.append((name, tuple(map(type, value)), value))
        elif not isinstance(value, dict | set | list) or value:
            return None
    return tuple(items)


def _is_candidate(module: torch.nn.Module) -> bool:
    """Whether a module is worth to be traced."""
    if isinstance(module, torch.nn.RMSNorm):
        return not isinstance(module, nn.RMSNorm)
    return not type(module).__module__.startswith(("torch.nn.", "torch.jit."))


def _replaced(name: str, module: torch.nn.Module, new: nn.RMSNorm) -> ReplacedModule:
    epsilon = torch.finfo(torch.float32).eps if new.eps is None else new.eps
    hidden_size = new.normalized_shape[0] if new.elementwise_affine else None
    kind = type(module).__name__
    return ReplacedModule(name, kind, hidden_size, epsilon, new.weight_offset)


def replace_rms_norm(model: torch.nn.Module) -> ReplaceReport:
    """Replaces every RMSNorm in a model by an `ai_edge_rms_norm.RMSNorm`, in place.

    The replacement is a drop-in: parameters and buffers are shared, not copied, under
    their names, so that optimizers and the `state_dict` stay as they are; the forward
    names x as before; attributes that others read are there; and the result has the
    dtype that the former module returns for the dtypes of x and of the weight. A module
    that is used in several places stays one. A replacement rounds once; in half
    precision, modules that round in between differ from it by that rounding.

    Args:
      model: The model; modules inside of it are replaced.

    Returns:
      The replaced modules, and those called an RMSNorm that were not, with the reason.

    Raises:
      TypeError: `model` is not a torch.nn.Module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    replaced, skipped = [], []
    replacements = _Replacements()
    new_modules: dict[torch.nn.Module, torch.nn.Module] = {}
    for name, module in filter(
        lambda item: _is_candidate(item[1]), model.named_modules()
    ):
        try:
            new = replacements.of(module)
            if module is model:
                raise proof.NotProvenError("it is the model itself, not a part of it")
        except proof.NotProvenError as error:
            kind = type(module).__name__
            if isinstance(module, torch.nn.RMSNorm) or _NAME.search(kind):
                skipped.append(SkippedModule(name, kind, str(error)))
            continue
        new_modules[module] = new
        replaced.append(_replaced(name, module, new))
    for parent in list(model.modules()):
        # Unlike named_children(), it lists a module under each of its names.
        for name, child in list(parent._modules.items()):  # noqa: SLF001
            if child in new_modules:
                setattr(parent, name, new_modules[child])
    return ReplaceReport(tuple(replaced), tuple(skipped))
