"""RMSNorm in PyTorch: the functions, the module and the operators against torch's own.

    bazel run //benchmarks:torch_op
    bazel run //benchmarks:torch_op -- --shapes 2048x8192 --modes compiled --rounds 5

Float32 with weight, eager and compiled, forward alone and forward
with backward. The rounds are interleaved; the table gives the median time, its
quartiles, and the ratio to the baseline in the same round: torch.nn.RMSNorm for the
module, torch.nn.functional.rms_norm for the rest. "again" is the baseline once more:
how far its ratio is from 1 is how far the others' may be by chance.
"""

import functools
from collections.abc import Callable

import torch
from absl import app, flags
from rich.console import Console
from rich.table import Table

import ai_edge_rms_norm as arn
from testing import timing

_THREADS = flags.DEFINE_integer("threads", 1, "Threads of PyTorch.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 101, "Interleaved rounds.", 3)
_SHAPES = flags.DEFINE_list("shapes", "1x640,128x2304", "Shapes, rows x hidden size.")
_MODES = flags.DEFINE_list("modes", "eager,compiled", "What to measure.")

_EPSILON = 1e-6
_SAMPLE_SECONDS = 1e-3

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _Candidate:
    """A forward, and what calls it with or without its backward."""

    def __init__(
        self,
        forward: Forward,
        x: torch.Tensor,
        weight: torch.Tensor,
        grad: torch.Tensor,
    ):
        self._forward, self._x, self._weight = forward, x, weight
        self._grad = grad

    def forward(self) -> torch.Tensor:
        return self._forward(self._x, self._weight)

    def backward(self) -> tuple[torch.Tensor, ...]:
        y = self._forward(self._x, self._weight)
        return torch.autograd.grad(y, (self._x, self._weight), self._grad)


def _of_module(module: torch.nn.Module) -> Forward:
    return lambda x, weight: module(x)


def _candidates(rows: int, hidden_size: int, compiled: bool) -> dict[str, _Candidate]:
    shape = (hidden_size,)
    operator = torch.ops.ai_edge_torch.custom_rms_norm
    functions: dict[str, Forward] = {
        "F.rms_norm": lambda x, weight: torch.nn.functional.rms_norm(
            x, shape, weight, _EPSILON
        ),
        "again": lambda x, weight: torch.nn.functional.rms_norm(
            x, shape, weight, _EPSILON
        ),
        "arn.rms_norm": lambda x, weight: arn.rms_norm(x, weight, _EPSILON),
        "operator": lambda x, weight: operator(x, weight, _EPSILON),
    }
    modules = {
        "torch.nn.RMSNorm": torch.nn.RMSNorm(hidden_size, _EPSILON),
        "arn.RMSNorm": arn.RMSNorm(hidden_size, _EPSILON),
    }
    x = torch.randn(rows, hidden_size).requires_grad_()
    weight = torch.randn(hidden_size).requires_grad_()
    grad = torch.randn(rows, hidden_size)
    prepare = (
        functools.partial(torch.compile, fullgraph=True, dynamic=False)
        if compiled
        else lambda callable_: callable_
    )
    # One code object is compiled for a limited number of shapes.
    torch.compiler.reset()
    return {
        name: _Candidate(prepare(function), x, weight, grad)
        for name, function in functions.items()
    } | {
        name: _Candidate(_of_module(prepare(module)), x, module.weight, grad)
        for name, module in modules.items()
    }


def _measure(
    table: Table, label: str, runs: dict[str, Callable[[], object]], baseline: str
) -> None:
    timings = timing.interleaved(runs, baseline, _ROUNDS.value, sample=_SAMPLE_SECONDS)
    for name, t in timings.items():
        table.add_row(
            label,
            name,
            f"{t.median * 1e6:.1f}",
            f"{t.low * 1e6:.1f} - {t.high * 1e6:.1f}",
            f"{t.ratio:.3f}",
        )


def main(_) -> None:
    torch.set_num_threads(_THREADS.value)
    table = Table("shape, mode", "", "median (µs)", "quartiles (µs)", "ratio")
    for text in _SHAPES.value:
        rows, hidden_size = map(int, text.split("x"))
        for mode in _MODES.value:
            candidates = _candidates(rows, hidden_size, mode == "compiled")
            modules = {n: c for n, c in candidates.items() if n.endswith("RMSNorm")}
            others = {n: c for n, c in candidates.items() if n not in modules}
            for group, baseline in (
                (others, "F.rms_norm"),
                (modules, "torch.nn.RMSNorm"),
            ):
                with torch.no_grad():
                    runs = {n: c.forward for n, c in group.items()}
                    _measure(table, f"{text} {mode}, forward", runs, baseline)
                runs = {n: c.backward for n, c in group.items()}
                _measure(table, f"{text} {mode}, f + b", runs, baseline)
    console = Console(width=200)
    console.print(table)
    for fact, value in timing.machine(("torch",)).items():
        console.print(f"{fact}: {value}")


if __name__ == "__main__":
    app.run(main)
