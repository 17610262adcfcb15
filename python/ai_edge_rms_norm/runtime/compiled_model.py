"""The kernels inside LiteRT's CompiledModel.

CompiledModel loads no delegates, but accelerator libraries: from the folder that its
environment names, under a fixed file name. The delegate's library is one.
"""

import contextlib
import ctypes
import importlib.metadata
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ai_edge_rms_norm.runtime import interpreter

if TYPE_CHECKING:
    from ai_edge_litert.environment import Environment

__all__ = ["accelerator", "environment"]

# The name under which the runtime looks for an accelerator library.
_FILE_NAME = "libLiteRtGpuAccelerator.so"
_MINIMUM = (2, 2)  # Older ones have another accelerator ABI.
_MAX_NUM_THREADS = 256


def _check_version() -> None:
    for package in ("ai-edge-litert", "ai-edge-litert-nightly"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if tuple(int(part) for part in version.split(".")[:2]) < _MINIMUM:
            raise RuntimeError(
                f"{package} is {version}; CompiledModel takes the kernels from 2.2 on"
            )
        return


@contextlib.contextmanager
def accelerator(num_threads: int | None = None) -> Iterator[str]:
    """Gives a folder with the kernels as an accelerator library, for an environment.

    Args:
      num_threads: As for `environment`.

    Raises:
      FileNotFoundError: The package was built without the delegate.
      ValueError: num_threads is not between 1 and 256.
    """
    if num_threads is not None and not 1 <= num_threads <= _MAX_NUM_THREADS:
        raise ValueError(
            f"num_threads must be from 1 to {_MAX_NUM_THREADS}, got {num_threads}"
        )
    delegate = interpreter.delegate_path()
    with tempfile.TemporaryDirectory() as folder:
        # A copy is a library of its own in the process, with its own num_threads. It
        # stays loaded without its file.
        library = pathlib.Path(shutil.copyfile(delegate, f"{folder}/{_FILE_NAME}"))
        if num_threads is not None:
            ctypes.CDLL(str(library)).ai_edge_rms_norm_set_num_threads(num_threads)
        yield folder


def environment(num_threads: int | None = None) -> "Environment":
    """Returns an environment whose compiled models run norms on the fused kernels.

    Pass it to `CompiledModel.from_file` or `from_buffer`; the models run on the CPU:

        model = CompiledModel.from_file(path, environment=environment(num_threads=4))

    Tested with LiteRT 2.2.0, 2.3.0 and 2.4.0.dev20261026, which run the encodings
    `custom`, `ml_drift`, `composite` and `decomposed` on the kernels and refuse
    `stablehlo_custom_call`: `translate` the file first. The environment has no GPU,
    since the accelerator takes the place of the GPU's.

    Args:
      num_threads: Threads of the kernels, 1 to 256; default the runtime's number. The
        other operators have that of `CpuOptions`.

    Raises:
      FileNotFoundError: The package was built without the delegate.
      ImportError: ai-edge-litert has no environments; it is older than 2.2.
      RuntimeError: ai-edge-litert is older than 2.2.
      ValueError: num_threads is not between 1 and 256.
    """
    with accelerator(num_threads) as folder:
        _check_version()
        from ai_edge_litert.environment import Environment, EnvironmentOptions

        return Environment.create(options=EnvironmentOptions(runtime_path=folder))
