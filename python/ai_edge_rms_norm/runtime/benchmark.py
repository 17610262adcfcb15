"""Interleaved timing of several callables or models."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ai_edge_rms_norm.runtime import execution, pictures
from ai_edge_rms_norm.runtime.interpreter import Interpreter

__all__ = ["Timing", "benchmark", "interleaved", "plot", "run_name"]

# Longer than threads spin after their work, so that those of one do not slow the next.
_WARM_UP = 5e-3
_MINIMUM_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call over the rounds, and the ratio to the baseline's.

    Attributes:
      median: Median seconds per call.
      low: First quartile.
      high: Third quartile.
      ratio: Median over the rounds of this time divided by the baseline's.
      ratio_low: First quartile of these ratios.
      ratio_high: Third quartile of these ratios.
    """

    median: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float


def _calls_per_sample(run: Callable[[], object], seconds: float) -> int:
    run()  # The first call may compile.
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        elapsed = time.perf_counter() - start
        if elapsed >= seconds / 4:
            return max(1, round(calls * seconds / elapsed))
        calls *= 4


def _warm_up(run: Callable[[], object], calls: int, seconds: float) -> None:
    end = time.perf_counter() + seconds
    for _ in range(calls):
        run()
    while time.perf_counter() < end:
        run()


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    baseline: str,
    rounds: int,
    *,
    sample: float = 2e-3,
    warm_up: float = 0.0,
    pause: float = 0.0,
) -> dict[str, Timing]:
    """Times every callable once per round, so that all see the same machine.

    Args:
      runs: What to call, by name.
      baseline: The name that ratios refer to.
      rounds: Number of rounds, at least 3.
      sample: Seconds that the repeated calls of one sample take, about.
      warm_up: Seconds to call each callable before its sample, at least; until the
        threads of the callable before spin no longer, while its own stay awake.
      pause: Seconds to sleep before each sample instead, which is then not warmed up:
        a burst after idleness.

    Raises:
      ValueError: `rounds` is too small for quartiles.
    """
    if rounds < 3:
        raise ValueError(f"rounds must be at least 3, got {rounds}")
    calls = {name: _calls_per_sample(run, sample) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            run, count = runs[name], calls[name]
            if pause > 0:
                time.sleep(pause)
            else:
                _warm_up(run, count // 8 + 1, warm_up)
            start = time.perf_counter()
            for _ in range(count):
                run()
            samples[name].append((time.perf_counter() - start) / count)
    result = {}
    for name, times in samples.items():
        low, median, high = statistics.quantiles(times, n=4)
        ratios = [t / b for t, b in zip(times, samples[baseline], strict=True)]
        ratio_low, ratio, ratio_high = statistics.quantiles(ratios, n=4)
        result[name] = Timing(median, low, high, ratio, ratio_low, ratio_high)
    return result


def _rounds_within(
    runs: Mapping[str, Callable[[], object]], seconds: float, sample: float
) -> int:
    """Returns how many rounds take about so many seconds, at least 5."""
    start = time.perf_counter()
    for run in runs.values():
        run()
    # A sample is at least one call, and its warm-up another one.
    once = time.perf_counter() - start
    round_seconds = max(2 * once, (sample + _WARM_UP) * len(runs))
    return max(_MINIMUM_ROUNDS, round(seconds / round_seconds))


def benchmark(
    models: Sequence[str | os.PathLike[str]],
    *,
    threads: Sequence[int] = (1,),
    fuse_decomposed: bool = False,
    seconds: float = 1.0,
) -> dict[str, dict[str, Timing]]:
    """Times models on the same random inputs, in interleaved rounds.

    Args:
      models: Paths of .tflite; the first one is what ratios refer to.
      threads: Numbers of threads; each model is timed with each, and ratios refer to
        the first model with the first number.
      fuse_decomposed: Whether decomposed norms are fused when a model is loaded.
      seconds: How long to measure each signature, about; at least 5 rounds.

    Returns:
      By signature (`subgraph 0` without any), by `PATH, N threads`.

    Raises:
      OSError: A file cannot be read.
      ValueError: A model is damaged, or has other signatures than the first.
    """
    runners: dict[str, dict[str, execution.Runner]] = {}
    for count in threads:
        for path in models:
            interpreter = Interpreter(
                model_path=path, num_threads=count, fuse_decomposed=fuse_decomposed
            )
            runners[run_name(path, count)] = execution.runners(interpreter)
    baseline = next(iter(runners))
    result = {}
    for signature, first in runners[baseline].items():
        inputs = execution.random_inputs(first)
        runs: dict[str, Callable[[], object]] = {}
        for name, of_model in runners.items():
            if signature not in of_model:
                raise ValueError(
                    f"{name}: it has no signature {signature!r}, but {list(of_model)}"
                )
            values = of_model[signature].check_inputs(inputs)
            runs[name] = _call(of_model[signature], values)
        sample = 2e-3
        result[signature] = interleaved(
            runs,
            baseline,
            _rounds_within(runs, seconds, sample),
            sample=sample,
            warm_up=_WARM_UP,
        )
    return result


def run_name(path: str | os.PathLike[str], threads: int) -> str:
    """Returns what a model with a number of threads is called in results."""
    return f"{os.fspath(path)}, {threads} thread{'s' * (threads > 1)}"


def _call(
    runner: execution.Runner, inputs: Mapping[str, np.ndarray]
) -> Callable[[], object]:
    return lambda: runner(inputs)


def plot(
    timings: Mapping[str, Mapping[str, Timing]], path: str | os.PathLike[str]
) -> None:
    """Draws the medians, with the quartiles as bars, one panel per signature.

    Args:
      timings: What `benchmark` returns.
      path: The picture to write; its suffix says the format, PNG without one.

    Raises:
      ImportError: matplotlib is not installed.
      OSError: The file cannot be written.
      ValueError: The format is not known.
    """
    rows = sum(len(of_signature) for of_signature in timings.values())
    figure = pictures.new_figure(8, 0.9 * len(timings) + 0.4 * rows)
    heights = [len(of_signature) for of_signature in timings.values()]
    panels = figure.subplots(
        len(timings), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes, (signature, of_signature) in zip(
        panels[:, 0], timings.items(), strict=True
    ):
        values = list(of_signature.values())
        medians = [timing.median * 1e3 for timing in values]
        spread = (
            [(timing.median - timing.low) * 1e3 for timing in values],
            [(timing.high - timing.median) * 1e3 for timing in values],
        )
        names = [_shown_name(name) for name in of_signature]
        axes.barh(range(len(names)), medians, xerr=spread, capsize=3)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_title(signature)
        axes.set_xlabel("milliseconds per call: median, and quartiles")
    pictures.write_figure(figure, path)


def _shown_name(name: str) -> str:
    path, comma, threads = name.rpartition(", ")
    return os.path.basename(path) + comma + threads
