"""A model on LiteRT's GPU accelerator, in a process that may crash or hang."""

import dataclasses
import enum
import json
import pathlib
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ai_edge_rms_norm import processes
from ai_edge_rms_norm.runtime import compare

__all__ = ["GpuOutcome", "GpuResult", "GpuRun", "Run", "compare_with_cpu", "run_on_gpu"]

_TIMEOUT = 300.0  # Seconds; large models spend minutes in the compiler of shaders.
_WORKER = """
import sys
from ai_edge_rms_norm.runtime import gpu_worker
gpu_worker.main(sys.argv[1])
"""
# Below it, two outputs do not say the same.
_MIN_COSINE = 0.99
_ATOL = 1e-5
# Of the largest |output|: float16 has a unit of 4.9e-4, and errors add up.
_RTOL = {"float16": 1e-2, "float32": 1e-3}
# LiteRT logs these where there is no device, or no accelerator in the package.
_NO_GPU = (
    "No adapters found",
    "GPU accelerator could not be loaded and registered",
)


class GpuOutcome(str, enum.Enum):
    """How a run on the GPU ended."""

    OK = "ok"
    NO_GPU = "no GPU"
    """LiteRT found no device, or has no GPU accelerator for this platform."""
    FAILED = "failed"
    """An exception when the model was loaded or run."""
    CRASHED = "crashed"
    TIMED_OUT = "timed out"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a signature on the CPU.

    Attributes:
      signature: Its name; None in a model without any.
      inputs: By name; where there is no signature, in the order of the model.
      outputs: The same.
    """

    signature: str | None
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class GpuRun:
    """A model on the GPU.

    Attributes:
      outcome: How it ended.
      message: Why, in words; empty if the outcome is OK.
      crash: The signal that ended the process; None unless the outcome is CRASHED.
      fully_accelerated: Whether no operator was left to the CPU.
      outputs: For each run; empty unless the outcome is OK.
    """

    outcome: GpuOutcome
    message: str = ""
    crash: signal.Signals | None = None
    fully_accelerated: bool = False
    outputs: tuple[dict[str, np.ndarray], ...] = ()


@dataclasses.dataclass(frozen=True)
class GpuResult:
    """How far a model on the GPU is from the CPU.

    Attributes:
      model: Name of the model in its bundle; empty for a .tflite.
      precision: `float16`, LiteRT's default, or `float32` (enforce_f32).
      outcome: How it ended.
      message: Why, in words; empty if the outcome is OK.
      fully_accelerated: Whether no operator was left to the CPU.
      differences: Of each output of each signature, the worst of all runs, between
        GPU (a) and CPU (b); empty unless the outcome is OK.
    """

    model: str
    precision: str
    outcome: GpuOutcome
    message: str = ""
    fully_accelerated: bool = False
    differences: tuple[compare.OutputDifference, ...] = ()

    @property
    def finding(self) -> str:
        """The problem in words; empty if there is none.

        Float32 is there to compare with: only float16, the default, has findings.
        """
        if self.precision != "float16":
            return ""
        if self.outcome == GpuOutcome.CRASHED:
            return f"the GPU accelerator crashes: {self.message}"
        for difference in self.differences:
            if difference.non_finite > difference.other_non_finite:
                return (
                    f"{difference.non_finite} elements of {difference.name} are"
                    f" infinite or NaN, {difference.other_non_finite} on the CPU"
                )
            if not difference.cosine >= _MIN_COSINE:
                return (
                    f"{difference.name} has the cosine {difference.cosine:.4f} with"
                    f" that of the CPU, below {_MIN_COSINE}"
                )
        return ""

    @property
    def title(self) -> str:
        """The precision and the model, in words."""
        return f"{self.model}, GPU {self.precision}".removeprefix(", ")

    def summary(self) -> str:
        """Returns the finding, or else how it ended; one line."""
        if self.finding:
            return f"{self.title}: {self.finding}"
        if self.outcome != GpuOutcome.OK:
            return f"{self.title}: {self.outcome.value}: {self.message}"
        cosine = min((d.cosine for d in self.differences), default=1.0)
        text = f"{self.title}: ok, smallest cosine with the CPU {cosine:.6f}"
        return text if self.fully_accelerated else f"{text}; partly on the CPU"

    def rows(self) -> tuple[tuple[str, ...], list[list[str]]]:
        """Returns the names of the columns of the table of outputs, and its rows."""
        columns, rows = compare.Comparison(
            self.differences, _RTOL[self.precision], _ATOL
        ).rows()
        return ("run", *columns), [[self.title, *row] for row in rows]

    def to_dict(self) -> dict[str, Any]:
        """Returns it as what JSON can hold; the fields are those of the classes."""
        return {
            **dataclasses.asdict(self),
            "outcome": self.outcome.value,
            "finding": self.finding,
        }


def run_on_gpu(
    content: bytes | memoryview,
    runs: Sequence[Run],
    *,
    float32: bool = False,
    timeout: float = _TIMEOUT,
) -> GpuRun:
    """Runs a model as it is on LiteRT's GPU accelerator, in another process.

    Args:
      content: The .tflite.
      runs: What to run; of the outputs only the names count.
      float32: Whether to compute in float32 (enforce_f32), not in float16.
      timeout: Seconds after which the process is killed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "model.tflite").write_bytes(content)
        np.savez(
            folder / "inputs.npz",
            **{  # type: ignore[arg-type]
                f"{i}_{j}": value
                for i, run in enumerate(runs)
                for j, value in enumerate(run.inputs.values())
            },
        )
        request = [
            {"signature": r.signature, "inputs": [*r.inputs], "outputs": [*r.outputs]}
            for r in runs
        ]
        (folder / "request.json").write_text(
            json.dumps({"float32": float32, "runs": request})
        )
        try:
            process = processes.run_python(_WORKER, name, timeout=timeout)
        except subprocess.TimeoutExpired:
            message = f"no result within {timeout:g} s"
            return GpuRun(GpuOutcome.TIMED_OUT, message)
        return _result(folder, process, runs)


def _result(
    folder: pathlib.Path,
    process: "subprocess.CompletedProcess[str]",
    runs: Sequence[Run],
) -> GpuRun:
    if process.returncode < 0:
        try:
            name = signal.Signals(-process.returncode)
        except ValueError:  # A real-time signal has no name.
            return GpuRun(GpuOutcome.CRASHED, f"signal {-process.returncode}")
        return GpuRun(GpuOutcome.CRASHED, name.name, name)
    path = folder / "result.json"
    if process.returncode or not path.exists():
        lines = process.stderr.split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no message")
        message = f"the process ended with exit code {process.returncode}: {last}"
        return GpuRun(GpuOutcome.FAILED, message)
    result = json.loads(path.read_text())
    if "error" in result:
        if any(text in process.stderr for text in _NO_GPU):
            return GpuRun(
                GpuOutcome.NO_GPU,
                "LiteRT's GPU accelerator found no device here; nothing was compared",
            )
        return GpuRun(GpuOutcome.FAILED, _cause(process.stderr, result["error"]))
    with np.load(folder / "outputs.npz", allow_pickle=False) as arrays:
        return GpuRun(
            GpuOutcome.OK,
            fully_accelerated=result["fully_accelerated"],
            outputs=tuple(
                {name: arrays[f"{i}_{j}"] for j, name in enumerate(run.outputs)}
                for i, run in enumerate(runs)
            ),
        )


def _cause(log: str, error: str) -> str:
    """Returns the first error that LiteRT logged; its exceptions say only where."""
    logged = re.search(r"^ERROR: (?:\[[^]]*\] )?(.+)", log, re.MULTILINE)
    return logged[1].strip() if logged else " ".join(error.split())


def compare_with_cpu(
    model: str,
    content: bytes | memoryview,
    runs: Sequence[Run],
    *,
    timeout: float = _TIMEOUT,
) -> tuple[GpuResult, ...]:
    """Runs a model on the GPU in float16 and float32, and compares it with the CPU.

    Args:
      model: Name of the model in its bundle; empty for a .tflite.
      content: The .tflite.
      runs: Inputs, and the outputs of the CPU.
      timeout: Seconds for each of the two.
    """
    return tuple(
        _compared(
            model,
            precision,
            run_on_gpu(content, runs, float32=precision == "float32", timeout=timeout),
            runs,
        )
        for precision in _RTOL
    )


def _compared(
    model: str, precision: str, gpu: GpuRun, runs: Sequence[Run]
) -> GpuResult:
    worst: dict[str, compare.OutputDifference] = {}
    several = len({run.signature for run in runs}) > 1
    for run, outputs in zip(runs, gpu.outputs, strict=False):
        try:
            comparison = compare.compare_outputs(
                outputs, run.outputs, rtol=_RTOL[precision], atol=_ATOL
            )
        except ValueError as error:
            return GpuResult(model, precision, GpuOutcome.FAILED, str(error))
        for difference in comparison.outputs:
            name = difference.name
            name = f"{run.signature}, {name}" if several else name
            named = dataclasses.replace(difference, name=name)
            worst[name] = _worse(worst.get(name, named), named)
    return GpuResult(
        model,
        precision,
        gpu.outcome,
        gpu.message,
        gpu.fully_accelerated,
        tuple(worst.values()),
    )


def _worse(
    a: compare.OutputDifference, b: compare.OutputDifference
) -> compare.OutputDifference:
    # Both counts of one run, so that their difference is that of a run.
    most = max((a, b), key=lambda d: (d.non_finite - d.other_non_finite, d.non_finite))
    return compare.OutputDifference(
        a.name,
        max(a.max_abs_error, b.max_abs_error),
        max(a.max_rel_error, b.max_rel_error),
        min(a.cosine, b.cosine),
        most.non_finite,
        most.other_non_finite,
        a.close and b.close,
    )
