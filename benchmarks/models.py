"""Decoders of real architectures with their norms fused and not, in one process.

    bazel run //benchmarks:models -- --output $PWD/results

Each has the widths of the real model, two layers, a vocabulary of 512 and random
weights. One file is converted per signature, with the norms as primitive operators;
`fuse` makes the two others of it, with composites and with our operator. The first two
run in the stock interpreter, the third with the plugin; the rounds are interleaved. The
control is a second interpreter with the first file: what it differs by is noise.
Writes models.json and models.png to --output.
"""

import dataclasses
import functools
import pathlib

import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags
from ai_edge_litert import interpreter as litert
from rich.table import Table

import ai_edge_rms_norm as arn
from benchmarks import report
from testing import architectures, timing

_OUTPUT = flags.DEFINE_string("output", None, "Folder for the JSON and the plot.")
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of every interpreter.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 21, "Interleaved rounds.", 3)
_PREFILL = flags.DEFINE_integer("prefill", 64, "Tokens of the prompt.", 1)
_CACHE = flags.DEFINE_integer("cache", 128, "Tokens of the KV cache or window.", 2)
_MODELS = flags.DEFINE_list("models", None, "Parts of names; default: all models.")

_PRIMITIVES, _CONTROL = "primitives", "control"
_COMPOSITE, _FUSED = "composite", "fused"


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


def _measure(
    architecture: architectures.Architecture, name: str, content: bytes
) -> dict[str, object]:
    fused, report = arn.fuse(content, encoding="custom")
    composite, _ = arn.fuse(content, encoding="composite")
    threads = {"num_threads": _THREADS.value}
    interpreters = {
        _PRIMITIVES: litert.Interpreter(model_content=content, **threads),
        _CONTROL: litert.Interpreter(model_content=content, **threads),
        _COMPOSITE: litert.Interpreter(model_content=bytes(composite), **threads),
        _FUSED: arn.Interpreter(model_content=bytes(fused), **threads),
    }
    interpreters = {k: _set_up(v) for k, v in interpreters.items()}
    expected = _logits(interpreters[_PRIMITIVES])
    error = np.abs(_logits(interpreters[_FUSED]) - expected).max()
    timings = timing.interleaved(
        {k: v.invoke for k, v in interpreters.items()}, _PRIMITIVES, _ROUNDS.value
    )
    return {
        "model": architecture.name,
        "signature": name,
        "norms": architecture.norms,
        "norms_fused": len(report.fused),
        "operators_before": report.operators_before,
        "operators_after": report.operators_after,
        "bytes_before": len(content),
        "bytes_after": len(bytes(fused)),
        "error": float(error / np.abs(expected).max()),
        "times": {k: dataclasses.asdict(v) for k, v in timings.items()},
    }


def _row(result: dict) -> list[str]:
    times = result["times"]
    return [
        f"{result['model']}, {result['signature']}",
        f"{result['norms_fused']} of {result['norms']}",
        f"{result['operators_before']} → {result['operators_after']}",
        f"{result['bytes_after'] - result['bytes_before']:+d}",
        f"{result['error']:.0e}",
        f"{times[_PRIMITIVES]['median'] * 1e3:.3f}",
        *(
            f"{times[name]['median'] * 1e3:.3f} ({1 / times[name]['ratio']:.2f}x)"
            for name in (_CONTROL, _COMPOSITE, _FUSED)
        ),
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
    axes.set_yticks(positions, [f"{r['model']}, {r['signature']}" for r in results])
    axes.invert_yaxis()
    axes.set(xlabel="speed-up over primitive operators", title=title)
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
    if _PREFILL.value >= _CACHE.value:
        raise app.UsageError(
            f"--prefill must be less than --cache, {_CACHE.value}, got {_PREFILL.value}"
        )
    results = []
    for architecture in chosen:
        module = architecture.build(_CACHE.value)
        for name, inputs in architecture.signatures(
            module, _PREFILL.value, _CACHE.value
        ):
            content = bytes(arn.convert(module, kwargs=inputs))
            results.append(_measure(architecture, name, content))

    packages = ("torch", "litert-torch", "transformers", "ai-edge-litert", "numpy")
    facts = timing.machine(packages)
    facts |= {
        "kernel variant": arn.kernel_variant(),
        "threads": str(_THREADS.value),
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
        "primitives ms",
        "control ms",
        "composite ms",
        "fused ms",
        title="two layers, float32; error relative to the largest logit",
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
