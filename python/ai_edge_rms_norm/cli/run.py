"""`ai-edge-rms-norm run`."""

import io
import pathlib
from typing import Annotated

import numpy as np
import typer

from ai_edge_rms_norm.cli import app, errors, options, output
from ai_edge_rms_norm.cli.rewrite import check_output
from ai_edge_rms_norm.runtime import execution
from ai_edge_rms_norm.runtime.interpreter import Interpreter
from ai_edge_rms_norm.tflite import files

_RANDOM = pathlib.Path("random")
_COLUMNS = ("output", "shape", "type", "min", "mean", "max", "non-finite")


def _row(name: str, value: np.ndarray) -> list[str]:
    shape = "x".join(map(str, value.shape))
    finite = np.isfinite(value)
    numbers = value[finite].astype(np.float64)
    cells = ["", "", ""]
    if numbers.size:
        cells = [f"{n:.6g}" for n in (numbers.min(), numbers.mean(), numbers.max())]
    return [name, shape, str(value.dtype), *cells, str(int((~finite).sum()))]


@app.command
def run(
    model: options.Tflite,
    inputs: Annotated[
        pathlib.Path, typer.Option("--input", help="A .npz, a .npy, or random.")
    ] = _RANDOM,
    save: Annotated[
        pathlib.Path | None, typer.Option(help="Write the outputs to this .npz.")
    ] = None,
    signature: Annotated[
        str | None, typer.Option(help="The signature; default the first.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
) -> None:
    """Run a model once and say what its outputs are.

    Examples:
      ai-edge-rms-norm run model.tflite
      ai-edge-rms-norm run model.tflite --input x.npz --save y.npz --threads 2
    """
    if save is not None:
        check_output(save)
    with errors.about(model), output.stage(f"Running {model}"):
        interpreter = Interpreter(model_path=model, num_threads=threads)
        name, runner = next(iter(execution.runners(interpreter, signature).items()))
        if inputs == _RANDOM:
            values = execution.random_inputs(runner)
        else:
            values = runner.check_inputs(options.read_inputs(inputs, runner))
        outputs = runner(values)
    if save is not None:
        content = io.BytesIO()
        np.savez(content, **outputs)  # type: ignore[arg-type]
        with errors.about(save):
            files.write_file(save, [content.getvalue()])
    output.table(_COLUMNS, [_row(*item) for item in outputs.items()])
    written = "" if save is None else f"; {save} written"
    output.summary(f"{model}, {name}: {len(outputs)} outputs{written}")
