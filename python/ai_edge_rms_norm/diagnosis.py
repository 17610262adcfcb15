"""Finds out what works on this machine, for users and for bug reports.

Each part is tried on a tiny model in a process of its own, so that neither a crash nor
a hang of one ends the diagnosis.
"""

import concurrent.futures
import dataclasses
import importlib.metadata
import pathlib
import platform
import subprocess

from ai_edge_rms_norm import processes

__all__ = ["Finding", "diagnose"]

_PACKAGES = (
    "ai-edge-rms-norm",
    "ai-edge-litert",
    "torch",
    "litert-torch",
    "litert-converter",
    "tensorflow",
    "ai-edge-quantizer",
    "litert-lm-builder",
)
# Those that the kernel variants are made for.
_CPU_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "asimd", "bf16")
_MODEL = """
import numpy as np
from ai_edge_litert import schema_py_generated as s
from ai_edge_rms_norm.tflite import encoding, flatbuffer, op_options
x, y = (s.TensorT(shape=[2, 8], type=0, buffer=0, name=n) for n in (b"x", b"y"))
op = s.OperatorT(opcodeIndex=0, inputs=[0], outputs=[1])
op.customOptions = np.frombuffer(op_options.encode_custom_options(1e-6), np.uint8)
code = s.OperatorCodeT(builtinCode=32, deprecatedBuiltinCode=32, version=1)
code.customCode = op_options.RMS_NORM.encode()
graph = s.SubGraphT(tensors=[x, y], inputs=[0], outputs=[1], operators=[op])
model = flatbuffer.to_bytes(s.ModelT(
    version=3, operatorCodes=[code], subgraphs=[graph], buffers=[s.BufferT()]))
values = np.linspace(-3, 4, 16, dtype=np.float32).reshape(2, 8)
expected = values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-6)
def check(result):
    error = float(np.abs(result.reshape(2, 8) - expected).max())
    assert error < 2e-3, f"the result is {error} off"
"""
_DELEGATE = (
    _MODEL
    + """
from ai_edge_rms_norm import Interpreter, kernel_variant
runner = Interpreter(model_content=model)
runner.allocate_tensors()
runner.set_tensor(runner.get_input_details()[0]["index"], values)
runner.invoke()
check(runner.get_tensor(runner.get_output_details()[0]["index"]))
print("right; kernel variant " + kernel_variant())
"""
)
_COMPILED = """
inputs, outputs = compiled.create_input_buffers(0), compiled.create_output_buffers(0)
inputs[0].write(values)
compiled.run_by_index(0, inputs, outputs)
check(outputs[0].read(16, np.float32))
print("right")
"""
_COMPILED_MODEL = (
    _MODEL
    + """
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_rms_norm import compiled_model
environment = compiled_model.environment()
compiled = CompiledModel.from_buffer(model, environment=environment)
"""
    + _COMPILED
)
_GPU = (
    _MODEL
    + """
from ai_edge_litert.compiled_model import CompiledModel, HardwareAccelerator, Options
model = encoding.translate(model, "ml_drift")
gpu = Options(hardware_accelerators=HardwareAccelerator.GPU)
compiled = CompiledModel.from_buffer(model, options=gpu)
assert compiled.is_fully_accelerated(), "the GPU does not take the model"
"""
    + _COMPILED
)
_CONVERT = (
    _MODEL
    + """
import torch, ai_edge_rms_norm as arn
x = torch.from_numpy(values.copy())
model = arn.convert(torch.nn.RMSNorm(8, 1e-6).eval(), (x,), fuse_decomposed=True,
    backend=BACKEND)
assert len(model.rms_norm_ops()) == 1, "the norm was not found"
check(model(values))
print("right")
"""
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of a diagnosis.

    Attributes:
      name: Of what was looked at.
      is_ok: Whether it works; None for what is only stated.
      value: The state, or the error.
      remedy: What to do about it; empty if there is nothing to do.
    """

    name: str
    is_ok: bool | None
    value: str
    remedy: str = ""


def diagnose(timeout: float = 120.0) -> tuple[Finding, ...]:
    """Tries out what works here.

    Args:
      timeout: Seconds that each trial may take.
    """
    trials: list[tuple[str, str, str]] = [
        (
            "delegate in LiteRT's Interpreter",
            _DELEGATE,
            "install the wheel of this platform: pip install --force-reinstall"
            " ai-edge-rms-norm",
        ),
        (
            "delegate in LiteRT's CompiledModel",
            _COMPILED_MODEL,
            "it needs ai-edge-litert 2.2 or newer: pip install -U ai-edge-litert",
        ),
        (
            "LiteRT's GPU accelerator",
            _GPU,
            "it needs a GPU with a Vulkan driver; the CPU works without it",
        ),
        (
            "converter litert",
            _CONVERT.replace("BACKEND", "'litert'"),
            "pip install 'ai-edge-rms-norm[convert]'; there is no wheel for ARM64",
        ),
        (
            "converter tensorflow",
            _CONVERT.replace("BACKEND", "'tensorflow'"),
            "pip install 'ai-edge-rms-norm[tensorflow]'; the converter litert does"
            " without it",
        ),
    ]
    findings = [
        Finding("Python", None, platform.python_version()),
        Finding("platform", None, platform.platform()),
        Finding("CPU features", None, _cpu_features()),
        *(Finding(f"package {name}", None, _version(name)) for name in _PACKAGES),
    ]
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        return (*findings, *pool.map(lambda t: _try(t[0], t[1], t[2], timeout), trials))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_features() -> str:
    try:
        words = set(pathlib.Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return f"unknown, {platform.machine()}"
    found = [name for name in _CPU_FEATURES if name in words]
    return f"{platform.machine()} {' '.join(found)}".strip()


def _try(name: str, code: str, remedy: str, timeout: float) -> Finding:
    try:
        result = processes.run_python(code, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Finding(name, False, f"no result within {timeout:g} s", remedy)
    if result.returncode == 0:
        return Finding(name, True, result.stdout.strip().rpartition("\n")[2])
    if result.returncode < 0:
        return Finding(name, False, f"it ends with signal {-result.returncode}", remedy)
    # The last line of a traceback is the exception.
    lines = [line for line in result.stderr.splitlines() if line[:1].strip()]
    errors = [line for line in lines if "Error" in line.partition(":")[0]]
    return Finding(name, False, (errors or lines or ["no message"])[-1], remedy)
