"""LiteRT's GPU accelerator on Mesa's lavapipe, a Vulkan device that runs on the CPU.

The accelerator is the one of the pip wheel: ML Drift on WebGPU, in float16 by default;
lavapipe has float16 arithmetic. `vulkan_layer.cc` says why a layer is needed.
"""

import contextlib
import ctypes
import glob
import os
import pathlib
import platform
import tempfile
from collections.abc import Iterator
from unittest import mock

import numpy as np

from ai_edge_rms_norm.runtime import gpu

# The name of the only output of what `run` returns.
OUTPUT = "y"
_FOLDER = pathlib.Path(__file__).parent
_LAYER = "VK_LAYER_AI_EDGE_RMS_NORM_cpu_as_gpu"
_DRIVERS = f"/usr/share/vulkan/icd.d/lvp_icd.{platform.machine()}.json"
_TIMEOUT = 120  # seconds


def unavailable() -> str | None:
    """Returns why there is no GPU of the tests here; None if there is one."""
    if not glob.glob(_DRIVERS):
        return f"{_DRIVERS} is missing: install mesa-vulkan-drivers"
    try:
        ctypes.CDLL("libvulkan.so.1")
        layer = ctypes.CDLL(str(_FOLDER / "libvulkan_layer.so"))
    except OSError as error:
        return str(error)
    if not hasattr(layer, "vkNegotiateLoaderLayerInterfaceVersion"):
        return "the Vulkan layer was built without headers: install libvulkan-dev"
    return None


def environment(folder: str) -> dict[str, str]:
    """Returns the variables by which a process finds the GPU of the tests.

    Args:
      folder: A folder for sockets.
    """
    return {
        "VK_ICD_FILENAMES": _DRIVERS,
        "VK_INSTANCE_LAYERS": _LAYER,
        "VK_LAYER_PATH": str(_FOLDER),
        "XDG_RUNTIME_DIR": folder,
    }


@contextlib.contextmanager
def visible() -> Iterator[None]:
    """Lets the processes that this one starts find the GPU of the tests."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, environment(folder)),
    ):
        yield


def run(
    content: bytes, inputs: list[np.ndarray], *, enforce_float32: bool = False
) -> gpu.GpuRun:
    """Runs a model of one input and one output, without signatures, on several inputs.

    Args:
      content: The .tflite.
      inputs: float32 values of its input.
      enforce_float32: Whether to compute in float32, not in float16.
    """
    runs = [gpu.Run(None, {"x": x}, {OUTPUT: x}) for x in inputs]
    with visible():
        return gpu.run_on_gpu(content, runs, float32=enforce_float32, timeout=_TIMEOUT)
