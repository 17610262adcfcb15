"""Interleaved timing of several callables, and what a report says of the machine."""

import os
import platform
from importlib import metadata

from ai_edge_rms_norm.runtime.benchmark import Timing, interleaved

__all__ = ["Timing", "interleaved", "machine"]


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
