"""Decoders of real architectures with their norms fused and not, in one process.

    bazel run //benchmarks:models -- --output $PWD/results

Each has the widths of the real model, two layers, a vocabulary of 512 and random
weights. One file is converted per signature, with the norms decomposed; `fuse` makes
the two others of it, with composites and with `custom`. The first two run in the stock
interpreter, the third with the delegate; the rounds are interleaved. The control is a
second interpreter with the first file: what it differs by is noise.
Weights are float32 or int8 (dynamic range, of ai-edge-quantizer). Memory is what the
interpreter takes besides the mapped file. Writes models.json and models.png to
--output.
"""

import dataclasses
import functools
import itertools
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags
from ai_edge_litert import interpreter as litert
from ai_edge_quantizer import quantizer, recipe
from rich.table import Table

import ai_edge_rms_norm as arn
from benchmarks import memory, report
from testing import architectures, timing

_OUTPUT = flags.DEFINE_string("output", None, "Folder for the JSON and the plot.")
_THREADS = flags.DEFINE_list("threads", "1", "Threads of every interpreter, each.")
_WEIGHTS = flags.DEFINE_multi_enum(
    "weights", ["float32"], ["float32", "int8"], "Types of the weights, each."
)
_SIGNATURES = flags.DEFINE_list("signatures", None, "Names; default: all signatures.")
_ROUNDS = flags.DEFINE_integer("rounds", 21, "Interleaved rounds.", 3)
_PREFILL = flags.DEFINE_integer("prefill", 64, "Tokens of the prompt.", 1)
_CACHE = flags.DEFINE_integer("cache", 128, "Tokens of the KV cache or window.", 2)
_MODELS = flags.DEFINE_list("models", None, "Parts of names; default: all models.")

_DECOMPOSED, _CONTROL = "decomposed", "control"
_COMPOSITE, _FUSED = "composite", "fused"
# XNNPACK's idle threads spin for a million pauses, 47 ms at 3 GHz.
_SPIN_SECONDS = 60e-3


def _set_up(interpreter: litert.Interpreter) -> litert.Interpreter:
    """Sets the inputs: random tokens, their positions, an empty cache."""
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        shape = detail["shape"]
        value = np.zeros(shape, detail["dtype"])
        if "tokens" in detail["name"]:
            value = rng.integers(1, 500, shape).astype(detail["dtype"])
        elif "input_pos" in detail["name"]:
            start = 0 if len(value) > 1 else _PREFILL.value
            value += np.arange(start, start + len(value), dtype=detail["dtype"])
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return interpreter


def _logits(interpreter: litert.Interpreter) -> np.ndarray:
    details = interpreter.get_output_details()
    (index,) = (d["index"] for d in details if d["shape"][-1] == 512)
    return interpreter.get_tensor(index)


def _quantize(content: bytes) -> bytes:
    """Returns the model with int8 weights that stay float32 between operators."""
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        pathlib.Path(file.name).write_bytes(content)
        quantizer_ = quantizer.Quantizer(file.name)
        quantizer_.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        return bytes(quantizer_.quantize().quantized_model)


def _memory(content: bytes, threads: int, *delegate: str) -> int:
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        pathlib.Path(file.name).write_bytes(content)
        arguments = [memory.__file__, file.name, str(threads), *delegate]
        command = [sys.executable, *arguments]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _measure(content: bytes, num_threads: int) -> dict[str, object]:
    fused, report = arn.fuse(content, encoding="custom")
    composite, _ = arn.fuse(content, encoding="composite")
    threads = {"num_threads": num_threads}
    interpreters = {
        _DECOMPOSED: litert.Interpreter(model_content=content, **threads),
        _CONTROL: litert.Interpreter(model_content=content, **threads),
        _COMPOSITE: litert.Interpreter(model_content=bytes(composite), **threads),
        _FUSED: arn.Interpreter(model_content=bytes(fused), **threads),
    }
    interpreters = {k: _set_up(v) for k, v in interpreters.items()}
    expected = _logits(interpreters[_DECOMPOSED])
    error = np.abs(_logits(interpreters[_FUSED]) - expected).max()
    timings = timing.interleaved(
        {k: v.invoke for k, v in interpreters.items()},
        _DECOMPOSED,
        _ROUNDS.value,
        sample=20e-3,
        warm_up=_SPIN_SECONDS if num_threads > 1 else 0,
    )
    return {
        "norms_fused": len(report.fused),
        "operators_before": report.operators_before,
        "operators_after": report.operators_after,
        "bytes_before": len(content),
        "bytes_after": len(bytes(fused)),
        "memory_before": _memory(content, num_threads),
        "memory_after": _memory(bytes(fused), num_threads, arn.delegate_path()),
        "error": float(error / np.abs(expected).max()),
        "times": {k: dataclasses.asdict(v) for k, v in timings.items()},
    }


def _measure_model(architecture: architectures.Architecture) -> Iterator[dict]:
    module = architecture.build(_CACHE.value)
    signatures = architecture.signatures(module, _PREFILL.value, _CACHE.value)
    for name, inputs in signatures:
        if _SIGNATURES.value and name not in _SIGNATURES.value:
            continue
        content = bytes(arn.convert(module, kwargs=inputs))
        for weights, threads in itertools.product(_WEIGHTS.value, _THREADS.value):
            yield {
                "model": architecture.name,
                "signature": name,
                "weights": weights,
                "threads": int(threads),
                "norms": architecture.norms,
                **_measure(
                    content if weights == "float32" else _quantize(content),
                    int(threads),
                ),
            }


def _name(result: dict) -> str:
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    return f"{result['model']}, {result['signature']}, {result['weights']}, {threads}"


def _time(times: dict[str, float]) -> str:
    ratios = [times[key] for key in ("ratio", "ratio_low", "ratio_high")]
    return "{:.3f} ({:.2f}, {:.2f}-{:.2f})".format(times["median"] * 1e3, *ratios)


def _row(result: dict) -> list[str]:
    times = result["times"]
    return [
        _name(result),
        f"{result['norms_fused']} of {result['norms']}",
        f"{result['operators_before']} → {result['operators_after']}",
        f"{result['bytes_after'] - result['bytes_before']:+d}",
        f"{result['error']:.0e}",
        f"{times[_DECOMPOSED]['median'] * 1e3:.3f}",
        *(_time(times[name]) for name in (_CONTROL, _COMPOSITE, _FUSED)),
        f"{result['memory_before'] / 2**20:.1f} → {result['memory_after'] / 2**20:.1f}",
    ]


def _plot(results: list[dict], title: str, path: pathlib.Path) -> None:
    figure, axes = plt.subplots(
        figsize=(10, 0.45 * len(results) + 2), layout="constrained"
    )
    positions = np.arange(len(results))
    for offset, name in ((-0.27, _FUSED), (0, _COMPOSITE), (0.27, _CONTROL)):
        speed_ups = [1 / result["times"][name]["ratio"] for result in results]
        color = "lightgray" if name == _CONTROL else None
        axes.barh(positions + offset, speed_ups, 0.25, label=name, color=color)
    axes.axvline(1, color="k", linestyle="--", linewidth=1)
    axes.set_yticks(positions, [_name(result) for result in results])
    axes.invert_yaxis()
    axes.set(xlabel="speed-up over decomposed norms", title=title)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


def main(_) -> None:
    parts = _MODELS.value or [""]
    chosen = [
        a for a in architectures.ARCHITECTURES if any(part in a.name for part in parts)
    ]
    if not chosen:
        names = ", ".join(a.name for a in architectures.ARCHITECTURES)
        raise app.UsageError(f"--models: {_MODELS.value} is in none of: {names}")
    for threads in _THREADS.value:
        if not threads.isdecimal() or int(threads) < 1:
            raise app.UsageError(f"--threads: expected numbers from 1, got {threads!r}")
    if _PREFILL.value >= _CACHE.value:
        raise app.UsageError(
            f"--prefill must be less than --cache, {_CACHE.value}, got {_PREFILL.value}"
        )
    results = [
        result for architecture in chosen for result in _measure_model(architecture)
    ]
    packages = (
        "torch",
        "litert-torch",
        "transformers",
        "ai-edge-litert",
        "ai-edge-quantizer",
        "numpy",
    )
    facts = timing.machine(packages)
    facts |= {
        "kernel variant": arn.kernel_variant(),
        "threads": ", ".join(_THREADS.value),
        "rounds": str(_ROUNDS.value),
        "prefill": f"{_PREFILL.value} tokens",
        "cache, window": f"{_CACHE.value} tokens",
    }
    table = Table(
        "model, signature",
        "norms",
        "operators",
        "bytes",
        "error",
        "decomposed ms",
        "control ms",
        "composite ms",
        "fused ms",
        "memory MiB",
        title="two layers; error relative to the largest logit; in brackets the time"
        " over that of the decomposed norms and its quartiles",
    )
    for result in results:
        table.add_row(*_row(result))
    report.publish(
        "models",
        table,
        {"machine": facts, "results": results},
        _OUTPUT.value,
        functools.partial(_plot, results),
    )


if __name__ == "__main__":
    app.run(main)
