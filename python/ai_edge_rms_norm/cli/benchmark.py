"""`ai-edge-rms-norm benchmark`."""

import time
from typing import Annotated

import numpy as np
import typer

from ai_edge_rms_norm.cli import app, errors, options
from ai_edge_rms_norm.runtime.interpreter import Interpreter, kernel_variant


def _random(shape: np.ndarray, dtype: type) -> np.ndarray:
    if not np.issubdtype(dtype, np.floating):
        return np.zeros(shape, dtype)  # Valid wherever it indexes something.
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@app.command
def benchmark(
    model: options.Model,
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time per signature.")] = 1.0,
) -> None:
    r"""Time every signature of a model on random input (zeros for integers).

    \b
    Example:
      ai-edge-rms-norm benchmark model.tflite --threads 2
    """
    with errors.about(model):
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
