"""Lets a stock TensorFlow export custom calls, without a rebuilt wheel.

TensorFlow's flatbuffer exporter rejects vhlo.custom_call_v1 beside TFLite operators,
although it can write it. A small shared library of ours takes the exporter's place in
the process and, inside `scope()`, asks the original to write it. That works on Linux,
when the library is loaded before TensorFlow is imported. docs/VHLO_CUSTOM_CALL_FIX.md
describes the mechanism.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import pathlib
import re
import sys
from collections.abc import Iterator

__all__ = ["TESTED_VERSIONS", "load", "release", "scope", "tensorflow_version"]

# (major, minor) of the TensorFlow releases in which this was seen to work.
TESTED_VERSIONS = ((2, 18), (2, 19), (2, 20), (2, 21))

_LIBRARY = pathlib.Path(__file__).parents[1] / "_native" / "libvhlo_export.so"

_library: ctypes.CDLL | None = None


def tensorflow_version() -> str | None:
    """Returns the version of the TensorFlow that is installed, without importing it."""
    if importlib.util.find_spec("tensorflow") is None:
        return None
    for name in ("tensorflow", "tensorflow-cpu", "ai-edge-tensorflow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def release(version: str) -> tuple[int, ...]:
    """Returns (major, minor) of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _obstacle() -> str | None:
    """Says what keeps the library from being loaded now."""
    if not sys.platform.startswith("linux"):
        return f"it works on Linux, not on {sys.platform}"
    if not _LIBRARY.is_file():
        return f"{_LIBRARY} is missing: this package was built without it"
    version = tensorflow_version()
    if version is None:
        return "TensorFlow is not installed"
    if release(version) not in TESTED_VERSIONS:
        tested = ", ".join(".".join(map(str, tested)) for tested in TESTED_VERSIONS)
        return f"it is tested with TensorFlow {tested}, not {version}"
    if "tensorflow" in sys.modules:
        return (
            "TensorFlow was imported before it (import"
            " ai_edge_rms_norm.conversion.tensorflow_vhlo_export and call load() first)"
        )
    return None


def load() -> str | None:
    """Loads the library; to be called before TensorFlow is imported.

    Calling it again is harmless. Outside of `scope()` the library does nothing.

    Returns:
      None if TensorFlow will export custom calls inside `scope()`, else the reason
      why it will not.
    """
    global _library
    if _library is None:
        obstacle = _obstacle()
        if obstacle:
            return obstacle
        try:
            library = ctypes.CDLL(str(_LIBRARY), ctypes.RTLD_GLOBAL)
        except OSError as error:
            return str(error)
        library.VhloExportTensorFlowIsLoaded.restype = ctypes.c_bool
        library.VhloExportSymbolIsPresent.restype = ctypes.c_bool
        if library.VhloExportTensorFlowIsLoaded():
            return "another library of this process has loaded TensorFlow before it"
        _library = library
    if "tensorflow" in sys.modules and not _library.VhloExportSymbolIsPresent():
        return (
            f"TensorFlow {tensorflow_version()} does not have the function that it"
            " replaces"
        )
    return None


@contextlib.contextmanager
def scope() -> Iterator[None]:
    """Lets the conversions of this thread export custom calls.

    Other operators without a TFLite equivalent are exported, too, where TensorFlow
    would raise: the caller has to look for them.

    Raises:
      RuntimeError: The library is not loaded, or TensorFlow did not call it.
    """
    reason = load()
    if reason:
        raise RuntimeError(
            f"TensorFlow cannot be made to export custom calls: {reason}"
        )
    _library.VhloExportOpenScope()
    try:
        yield
    except BaseException:
        _library.VhloExportCloseScope()
        raise
    exports = _library.VhloExportCloseScope()
    if not exports:
        raise RuntimeError(
            f"TensorFlow {tensorflow_version()} did not call the replaced exporter"
        )
