"""The command `ai-edge-rms-norm`: looks into, fuses, translates and times .tflite."""

import collections
import pathlib
import time
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from ai_edge_rms_norm.runtime.interpreter import Interpreter, kernel_variant
from ai_edge_rms_norm.tflite import encoding, flatbuffer
from ai_edge_rms_norm.tflite.fuse import fuse_model

__all__ = ["app"]

app = typer.Typer(
    help="Fused RMSNorm in .tflite files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Model = Annotated[pathlib.Path, typer.Argument(help="A .tflite.")]
_Output = Annotated[pathlib.Path, typer.Argument(help="The .tflite to write.")]
_Encoding = Annotated[
    encoding.Encoding, typer.Option("--encoding", help="The encoding to write.")
]


@app.command()
def inspect(model: _Model) -> None:
    """List the rms_norm operators of a model."""
    content = flatbuffer.load(model)
    table = Table()
    for name in (
        "subgraph",
        "operator",
        "encoding",
        "call target",
        "epsilon",
        "x",
        "weight",
    ):
        table.add_column(name, overflow="fold")
    nodes = encoding.find_ops(content)
    for node in nodes:
        tensors = content.subgraphs[node.subgraph].tensors
        shapes = ["x".join(map(str, tensors[i].shape)) for i in node.inputs if i >= 0]
        weights = len(shapes) - node.call_target.count("add_")
        table.add_row(
            str(node.subgraph),
            str(node.operator),
            node.encoding.value,
            node.call_target,
            repr(node.epsilon),
            shapes[0],
            shapes[-1] if weights > 1 else "none",
        )
    Console().print(table)
    typer.echo(f"{model}: {len(nodes)} operators, {model.stat().st_size} bytes")


@app.command()
def translate(
    model: _Model,
    output: _Output,
    to: _Encoding = encoding.Encoding.CUSTOM,
) -> None:
    """Write a model with its rms_norm operators in another encoding."""
    content = flatbuffer.load(model)
    count = encoding.translate_model(content, to)
    flatbuffer.write_file(output, content)
    typer.echo(f"{output}: {count} operators translated to {to.value}")


@app.command()
def fuse(
    model: _Model,
    output: _Output,
    to: _Encoding = encoding.Encoding.CUSTOM,
) -> None:
    """Write a model with every RMSNorm in it as one operator."""
    content = flatbuffer.load(model)
    report = fuse_model(content, to)
    flatbuffer.write_file(output, content)
    found = collections.Counter(
        (f.source, f.hidden_size, f.epsilon, f.has_weight) for f in report.fused
    )
    table = Table("norms", "source", "hidden size", "epsilon", "weight")
    for (source, hidden_size, epsilon, has_weight), count in found.items():
        weight = "yes" if has_weight else "none"
        table.add_row(str(count), source, str(hidden_size), repr(epsilon), weight)
    if found:
        Console().print(table)
    for skipped in report.skipped:
        typer.echo(
            f"left alone: subgraph {skipped.subgraph}, operator {skipped.operator}:"
            f" {skipped.reason}"
        )
    typer.echo(
        f"{output}: {len(report.fused)} norms fused, {report.operators_before}"
        f" operators became {report.operators_after}"
    )


def _random(shape: np.ndarray, dtype: type) -> np.ndarray:
    if not np.issubdtype(dtype, np.floating):
        return np.zeros(shape, dtype)  # Valid wherever it indexes something.
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@app.command()
def benchmark(
    model: _Model,
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time per signature.")] = 1.0,
) -> None:
    """Time every signature of a model on random input (zeros for integers)."""
    interpreter = Interpreter(model_path=model, num_threads=threads)
    signatures = interpreter.get_signature_list()
    if not signatures:
        raise ValueError(f"{model} has no signature to run")
    for name in signatures:
        runner = interpreter.get_signature_runner(name)
        inputs = {
            key: _random(detail["shape"], detail["dtype"])
            for key, detail in runner.get_input_details().items()
        }
        runner(**inputs)
        times: list[float] = []
        while sum(times) < seconds:
            start = time.perf_counter()
            runner(**inputs)
            times.append(time.perf_counter() - start)
        typer.echo(
            f"{name}: median {np.median(times) * 1e6:.1f} µs,"
            f" min {min(times) * 1e6:.1f} µs, {len(times)} runs, {threads} threads,"
            f" {kernel_variant()}"
        )


def main() -> None:
    """The entry point: bad files are one line on stderr, not a traceback."""
    try:
        app()
    except (OSError, ValueError, RuntimeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error
