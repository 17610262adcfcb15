"""RMSNorm of several runtimes at several shapes, in one process.

    bazel run //benchmarks:compare -- --output $PWD/results

Float32 with a random weight (a weight of ones would be folded away). The rounds are
interleaved; the table gives the median time and its ratio to a memcpy of the same
bytes in the same round, and the largest error in units in the last place (ulp)
against float64. Writes compare.json and compare.png to --output.

Buffers that this program allocates start at multiples of 4096 bytes: on Zen 3 memcpy
takes up to 17 times longer when (destination - source) mod 4096 is between 1 and 48.
Those of LiteRT and torch are where these allocate them. The floor is what three passes
take that wait for nothing: read x, read x and the weight, write y; on one thread.

Peers that are not Python packages are shared libraries, `--peer NAME=LIBRARY`, with

    int rms_norm_peer(const float* x, const float* weight, float* y, size_t rows,
                      size_t hidden_size, float epsilon, int num_threads);

in C, which normalizes each of the rows of hidden_size elements, on num_threads threads
if it can, and returns 0; otherwise the peer is left out. The table says which of the
usual peers (gemma.cpp, oneDNN, ggml) are missing.
"""

import ctypes
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import torch
from absl import app, flags, logging
from ai_edge_litert import interpreter as litert
from rich.table import Table

import ai_edge_rms_norm as arn
from benchmarks import report
from testing import timing, transformer

_OUTPUT = flags.DEFINE_string("output", None, "Folder for the JSON and the plot.")
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of every runtime.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Interleaved rounds.", 3)
_SHAPES = flags.DEFINE_list(
    "shapes",
    "1x640,1x1152,1x2048,1x4096,4x256,16x2048,128x640,128x2304,512x4096,1024x1152,"
    "2048x8192",
    "Shapes, rows x hidden size.",
)

_BURSTS = flags.DEFINE_bool("bursts", False, "Samples of 2 ms after 60 ms of sleep.")
_PEERS = flags.DEFINE_multi_string("peer", [], "NAME=LIBRARY of a peer, repeatable.")

_EPSILON = 1e-6
_MEMCPY, _FLOOR = "memcpy", "floor"
_USUAL_PEERS = ("gemma.cpp", "oneDNN", "ggml")
# Of this repository. The kernel is called as the peers are, without an interpreter.
_LIBRARIES = {
    _FLOOR: "kernels/rms_norm/librms_norm_floor.so",
    "ours, kernel": "kernels/rms_norm/librms_norm_kernel.so",
}
_PAGE = 4096
# XNNPACK's idle threads spin for a million pauses, 47 ms at 3 GHz, ONNX Runtime's and
# OpenMP's for less. A second CPU that slept would take some milliseconds to wake up.
_SPIN_SECONDS = 60e-3
_SAMPLE_SECONDS = 50e-3


@dataclasses.dataclass
class Contestant:
    """One runtime at one shape: how to run it and how to read its last output."""

    run: Callable[[], object]
    output: Callable[[], np.ndarray]


def _aligned(value: np.ndarray) -> np.ndarray:
    """Returns a copy that starts at a multiple of a page."""
    memory = np.empty(value.nbytes + _PAGE, np.uint8)
    start = -memory.ctypes.data % _PAGE
    copy = memory[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    copy[...] = value
    return copy


def _interpreter(interpreter: litert.Interpreter, x: np.ndarray) -> Contestant:
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    index = interpreter.get_output_details()[0]["index"]
    return Contestant(interpreter.invoke, lambda: interpreter.get_tensor(index))


def _tflite(x: np.ndarray, weight: np.ndarray) -> dict[str, Contestant]:
    fused = arn.RMSNorm(x.shape[-1], _EPSILON)
    fused.weight.data = torch.from_numpy(weight)
    decomposed = transformer.DecomposedRMSNorm(x.shape[-1], _EPSILON)
    decomposed.load_state_dict(fused.state_dict())
    sample = (torch.from_numpy(x),)
    model = arn.convert(fused.eval(), sample)
    threads = {"num_threads": _THREADS.value}

    def stock(content: bytes) -> Contestant:
        return _interpreter(litert.Interpreter(model_content=content, **threads), x)

    contestants = {
        f"ours, {encoding.value}": _interpreter(
            model.translate(encoding).interpreter(**threads), x
        )
        for encoding in arn.Encoding
    }
    contestants["LiteRT, decomposed"] = stock(
        bytes(arn.convert(decomposed.eval(), sample))
    )
    contestants["LiteRT, composite"] = stock(bytes(model.translate("composite")))
    return contestants


def _torch(x: np.ndarray, weight: np.ndarray) -> dict[str, Contestant]:
    torch.set_num_threads(_THREADS.value)
    x, weight = torch.from_numpy(x), torch.from_numpy(weight)

    def norm(x, weight):
        return torch.nn.functional.rms_norm(x, weight.shape, weight, _EPSILON)

    torch.compiler.reset()  # Shapes before this one count as recompilations.
    compiled = torch.compile(norm, fullgraph=True, dynamic=False)
    return {
        "torch, eager": Contestant(
            lambda: norm(x, weight), lambda: norm(x, weight).numpy()
        ),
        "torch, compiled": Contestant(
            lambda: compiled(x, weight), lambda: compiled(x, weight).numpy()
        ),
    }


def _onnxruntime(x: np.ndarray, weight: np.ndarray) -> dict[str, Contestant]:
    import onnxruntime  # A peer that may be absent.
    from onnx import TensorProto, helper

    node = helper.make_node(
        "SimplifiedLayerNormalization", ["x", "w"], ["y"], axis=-1, epsilon=_EPSILON
    )
    graph = helper.make_graph(
        [node],
        "rms_norm",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, weight.shape),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _THREADS.value
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    y = _aligned(np.zeros_like(x))
    binding = session.io_binding()
    for name, value in (("x", x), ("w", weight)):
        binding.bind_cpu_input(name, value)
    ort_y = onnxruntime.OrtValue.ortvalue_from_numpy(y)
    binding.bind_ortvalue_output("y", ort_y)
    return {
        "ONNX Runtime": Contestant(
            lambda: session.run_with_iobinding(binding), ort_y.numpy
        )
    }


def _memcpy(x: np.ndarray) -> Contestant:
    y = _aligned(np.zeros_like(x))
    return Contestant(lambda: np.copyto(y, x), lambda: y)


def _peer(library: str, x: np.ndarray, weight: np.ndarray) -> Contestant:
    """Returns a shared library's rms_norm_peer.

    Raises:
      OSError: It cannot be loaded or has no such function, or the function failed.
    """
    try:
        function = ctypes.CDLL(library).rms_norm_peer
    except AttributeError as error:
        raise OSError(f"{library} has no function rms_norm_peer") from error
    y = _aligned(np.zeros_like(x))
    rows, hidden_size = map(ctypes.c_size_t, x.shape)
    arguments = (
        *(ctypes.c_void_p(array.ctypes.data) for array in (x, weight, y)),
        rows,
        hidden_size,
        ctypes.c_float(_EPSILON),
        ctypes.c_int(_THREADS.value),
    )
    status = function(*arguments)
    if status != 0:
        raise OSError(f"rms_norm_peer of {library} returned {status}")
    # The default arguments keep what the pointers point to.
    return Contestant(lambda arrays=(x, weight, y): function(*arguments), lambda: y)


def _libraries() -> dict[str, str]:
    """Returns the libraries of peers by name."""
    root = pathlib.Path(__file__).parents[1]
    libraries = {name: str(root / library) for name, library in _LIBRARIES.items()}
    folder = pathlib.Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    for peer in _PEERS.value:
        name, separator, library = peer.partition("=")
        if not (name and separator and library) or name in libraries:
            raise app.UsageError(f"--peer: expected a new NAME=LIBRARY, got {peer!r}")
        libraries[name] = str((folder / library).absolute())
    return libraries


def _peers(
    x: np.ndarray, weight: np.ndarray, left_out: dict[str, str]
) -> dict[str, Contestant]:
    libraries = _libraries()
    contestants = {}
    for name, library in libraries.items():
        try:
            contestants[name] = _peer(library, x, weight)
        except OSError as error:
            left_out[name] = str(error)
    for name in _USUAL_PEERS:
        if name not in libraries:
            left_out[name] = f"no --peer {name}=LIBRARY"
    return contestants


def _max_ulp(y: np.ndarray, x: np.ndarray, weight: np.ndarray) -> float:
    x = x.astype(np.float64)
    exact = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + _EPSILON) * weight
    return float(
        np.max(np.abs(y - exact) / np.spacing(np.abs(exact, dtype=np.float32)))
    )


def _contestants(
    x: np.ndarray, weight: np.ndarray, left_out: dict[str, str]
) -> dict[str, Contestant]:
    contestants = {
        _MEMCPY: _memcpy(x),
        **_peers(x, weight, left_out),
        **_tflite(x, weight),
        **_torch(x, weight),
    }
    try:
        contestants |= _onnxruntime(x, weight)
    except ImportError as error:
        left_out["ONNX Runtime"] = str(error)
    return contestants


def _measure(
    shape: tuple[int, int], left_out: dict[str, str]
) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    x = _aligned(rng.standard_normal(shape, dtype=np.float32))
    weight = _aligned(1 + 0.1 * rng.standard_normal(shape[-1], dtype=np.float32))
    contestants = _contestants(x, weight, left_out)
    timings = timing.interleaved(
        {name: c.run for name, c in contestants.items()},
        _MEMCPY,
        _ROUNDS.value,
        sample=2e-3 if _BURSTS.value else _SAMPLE_SECONDS,
        warm_up=_SPIN_SECONDS,
        pause=_SPIN_SECONDS if _BURSTS.value else 0,
    )
    result = {}
    for name, contestant in contestants.items():
        result[name] = dataclasses.asdict(timings[name])
        if name not in (_MEMCPY, _FLOOR):
            result[name]["max_ulp"] = _max_ulp(contestant.output(), x, weight)
    return result


def _cell(result: dict[str, float], floor: dict[str, float] | None) -> str:
    ratios = "{ratio:.2f}, {ratio_low:.2f}-{ratio_high:.2f}".format(**result)
    if floor is not None:
        ratios += f"; {result['median'] / floor['median']:.2f}"
    return f"{result['median'] * 1e6:.2f} ({ratios})"


def _table(results: dict[str, dict]) -> Table:
    table = Table(
        title="µs (ratio to memcpy, its quartiles; ratio to the floor); the last column"
        " over all shapes"
    )
    table.add_column("runtime")
    for shape in results:
        table.add_column(shape, justify="right")
    table.add_column("max ulp", justify="right")
    for name in next(iter(results.values())):
        cells = [_cell(r[name], r.get(_FLOOR)) for r in results.values()]
        errors = [r[name].get("max_ulp") for r in results.values()]
        table.add_row(name, *cells, "" if None in errors else f"{max(errors):.1f}")
    return table


def _plot(results: dict[str, dict], title: str, path: pathlib.Path) -> None:
    figure, axes = plt.subplots(figsize=(12, 6), layout="constrained")
    shapes = list(results)
    for name in next(iter(results.values())):
        ratios = [results[shape][name]["ratio"] for shape in shapes]
        style = (
            "k--"
            if name in (_MEMCPY, _FLOOR)
            else "o-"
            if name.startswith("ours")
            else ".:"
        )
        axes.plot(shapes, ratios, style, label=name)
    axes.set(yscale="log", ylabel="time / time of memcpy", title=title)
    axes.set_xlabel("rows x hidden size, float32")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _parse(shape: str) -> tuple[int, int]:
    try:
        rows, hidden_size = (int(size) for size in shape.split("x"))
    except ValueError:
        rows = hidden_size = 0
    if rows < 1 or hidden_size < 1:
        raise app.UsageError(f"--shapes: expected ROWSxHIDDEN, got {shape!r}")
    return rows, hidden_size


def main(_) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # litert-torch logs every operator.
    shapes = {shape: _parse(shape) for shape in _SHAPES.value}
    left_out: dict[str, str] = {}
    results = {name: _measure(shape, left_out) for name, shape in shapes.items()}

    packages = ("torch", "litert-torch", "ai-edge-litert", "onnxruntime", "numpy")
    facts = timing.machine(packages)
    facts |= {"kernel variant": arn.kernel_variant(), "threads": str(_THREADS.value)}
    facts |= {"rounds": str(_ROUNDS.value), "bursts": str(_BURSTS.value)}
    report.publish(
        "compare",
        _table(results),
        {"machine": facts, "left_out": left_out, "results": results},
        _OUTPUT.value,
        functools.partial(_plot, results),
    )


if __name__ == "__main__":
    app.run(main)
