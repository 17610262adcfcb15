"""Interleaved timing of several callables, and what a report says of the machine."""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata

__all__ = ["Timing", "interleaved", "machine"]


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
      runs: The functions to call, by name.
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
    samples = {name: [] for name in runs}
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


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("model name", "CPU part")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def machine(packages: tuple[str, ...]) -> dict[str, str]:
    """Returns the CPU, the system and the versions of the packages installed."""
    facts = {
        "cpu": f"{_cpu_name()}, {os.cpu_count()} CPUs, {platform.machine()}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    for package in packages:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts
