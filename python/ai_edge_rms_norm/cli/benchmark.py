"""`ai-edge-rms-norm benchmark`."""

import contextlib
import pathlib
from typing import Annotated

import typer

from ai_edge_rms_norm.cli import app, errors, options, output
from ai_edge_rms_norm.cli.compare import timing_row
from ai_edge_rms_norm.runtime import benchmark as benchmark_lib
from ai_edge_rms_norm.runtime.interpreter import kernel_variant

_COLUMNS = ("signature", "model", "median ms", "quartiles ms", "ratio", "quartiles")


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise errors.InputError(
            f"--threads must be numbers from 1 on, as in 1,2, got {text!r}"
        )
    return list(dict.fromkeys(int(part) for part in parts))


@app.command
def benchmark(
    models: Annotated[list[pathlib.Path], typer.Argument(help="One or more .tflite.")],
    threads: Annotated[
        str, typer.Option(help="Numbers of threads, as in 1 or 1,2.")
    ] = "1",
    decomposed: Annotated[
        bool, typer.Option("--decomposed", help="Fuse decomposed norms at run time.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time per signature.")] = 1.0,
    json: options.Json = False,
) -> None:
    r"""Time models on random input (zeros for integers), in interleaved rounds.

    Ratios refer to the first model with the first number of threads, round by round.

    \b
    Examples:
      ai-edge-rms-norm benchmark model.tflite --threads 1,2
      ai-edge-rms-norm benchmark model.tflite fused.tflite --seconds 5
    """
    models = list(dict.fromkeys(models))
    # Of several, the errors name the one.
    about = errors.about(models[0]) if len(models) == 1 else contextlib.nullcontext()
    with about, output.stage("Measuring"):
        result = benchmark_lib.benchmark(
            models,
            threads=_counts(threads),
            fuse_decomposed=decomposed,
            seconds=seconds,
        )
    if json:
        timings = {
            signature: {name: vars(timing) for name, timing in of_signature.items()}
            for signature, of_signature in result.items()
        }
        data = {"kernel_variant": kernel_variant(), "seconds_per_call": timings}
        output.print_json("benchmark", data)
        return
    rows = [
        [signature, *timing_row(name, timing)]
        for signature, of_signature in result.items()
        for name, timing in of_signature.items()
    ]
    output.table(_COLUMNS, rows)
    output.summary(f"kernel variant {kernel_variant()}")
