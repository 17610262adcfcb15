"""LiteRT's GPU accelerator on Mesa's lavapipe, a Vulkan device that runs on the CPU.

The accelerator is the one of the pip wheel: ML Drift on WebGPU, in float16 by default;
lavapipe has float16 arithmetic. `vulkan_layer.cc` says why a layer is needed.
"""

import ctypes
import dataclasses
import glob
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile

import numpy as np

_FOLDER = pathlib.Path(__file__).parent
_LAYER = "VK_LAYER_AI_EDGE_RMS_NORM_cpu_as_gpu"
_DRIVERS = f"/usr/share/vulkan/icd.d/lvp_icd.{platform.machine()}.json"
_TIMEOUT = 120  # seconds


@dataclasses.dataclass(frozen=True)
class Run:
    """The outcome of a model on the GPU.

    Attributes:
      outputs: One array for each input; empty unless the process came to its end.
      fully_accelerated: Whether no operator was left to the CPU.
      crash: The signal that ended the process, if one did.
      error: The exception of Python, if it ended with one.
    """

    outputs: list[np.ndarray] = dataclasses.field(default_factory=list)
    fully_accelerated: bool = False
    crash: signal.Signals | None = None
    error: str | None = None


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


def run(
    content: bytes, inputs: list[np.ndarray], *, enforce_float32: bool = False
) -> Run:
    """Runs a model of one input and one output on several inputs.

    Args:
      content: The .tflite.
      inputs: float32 values of its input.
      enforce_float32: Whether to compute in float32, not in float16.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "model.tflite").write_bytes(content)
        np.savez(folder / "inputs.npz", *inputs)
        command = [sys.executable, _FOLDER / "run_model.py", folder / "model.tflite"]
        command += [folder / "inputs.npz", folder / "outputs.npz"]
        command += ["--enforce-float32"] if enforce_float32 else []
        process = subprocess.run(
            command,
            env={**os.environ, **environment(name)},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
        )
        if process.returncode < 0:
            return Run(crash=signal.Signals(-process.returncode))
        if process.returncode:
            return Run(error=process.stderr.strip().rpartition("\n")[2])
        with np.load(folder / "outputs.npz") as outputs:
            return Run(
                outputs=[outputs[f"arr_{i}"] for i in range(len(inputs))],
                fully_accelerated="fully_accelerated=True" in process.stdout,
            )
