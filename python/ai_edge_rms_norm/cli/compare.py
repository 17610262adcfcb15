"""`ai-edge-rms-norm compare`."""

import contextlib
import pathlib
import sys
from typing import Annotated, Any

import numpy as np
import typer

from ai_edge_rms_norm.cli import app, errors, options, output
from ai_edge_rms_norm.runtime import compare as compare_lib
from ai_edge_rms_norm.runtime import execution
from ai_edge_rms_norm.runtime.benchmark import Timing, interleaved
from ai_edge_rms_norm.runtime.interpreter import Interpreter

_ROUNDS = 11
_TIMES = ("model", "median ms", "quartiles ms", "ratio", "quartiles")


def _torch(source: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns a callable from inputs to outputs, and the example inputs by name."""
    try:
        import torch

        from ai_edge_rms_norm.conversion import sources
    except ModuleNotFoundError as error:
        raise errors.InputError(
            f"{error.name} is not installed: pip install 'ai-edge-rms-norm[convert]'"
        ) from error
    module, args, kwargs, _ = sources.load_source(source)

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = {name: torch.from_numpy(value) for name, value in inputs.items()}
        positional = [values.pop(f"args_{i}") for i in range(len(args))]
        with torch.no_grad():
            result = module(*positional, **values)
        if isinstance(result, dict):
            return {name: value.float().numpy() for name, value in result.items()}
        if isinstance(result, torch.Tensor):
            result = (result,)
        return {f"output_{i}": v.float().numpy() for i, v in enumerate(result)}

    named = {f"args_{i}": value for i, value in enumerate(args)} | kwargs
    return run, {name: value.detach().numpy() for name, value in named.items()}


def timing_row(name: str, timing: Timing) -> list[str]:
    """Returns a row of the table of times."""
    return [
        name,
        f"{timing.median * 1e3:.4g}",
        f"{timing.low * 1e3:.4g} to {timing.high * 1e3:.4g}",
        f"{timing.ratio:.3f}",
        f"{timing.ratio_low:.3f} to {timing.ratio_high:.3f}",
    ]


def _runner(path: pathlib.Path, threads: int, signature: str | None) -> Any:
    with errors.about(path), output.stage(f"Loading {path}"):
        interpreter = Interpreter(model_path=path, num_threads=threads)
        return next(iter(execution.runners(interpreter, signature).items()))


@app.command
def compare(
    model: options.Tflite,
    other: Annotated[
        pathlib.Path | None, typer.Argument(help="The .tflite to compare it to.")
    ] = None,
    torch: Annotated[
        str | None,
        typer.Option(help="Compare to FILE.py:FACTORY or a .pt2 instead."),
    ] = None,
    inputs: Annotated[
        pathlib.Path | None,
        typer.Option("--input", help="A .npz or .npy; default random or the example."),
    ] = None,
    signature: Annotated[
        str | None, typer.Option(help="The signature; default the first.")
    ] = None,
    rtol: Annotated[
        float, typer.Option(min=0, help="Relative to the largest |b| of an output.")
    ] = 1e-3,
    atol: Annotated[float, typer.Option(min=0, help="Absolute tolerance.")] = 1e-5,
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
    json: options.Json = False,
) -> None:
    """Run two models on the same inputs: how far are outputs and times apart.

    The exit code is 1 if an output is not close. Times are of interleaved rounds,
    ratios refer to the second model.

    Examples:
      ai-edge-rms-norm compare model.tflite fused.tflite
      ai-edge-rms-norm compare model.tflite --torch model.py:make --rtol 1e-2
    """
    if (other is None) == (torch is None):
        raise errors.InputError("expected another .tflite or --torch, and not both")
    name, runner = _runner(model, threads, signature)
    values: Any = None
    if other is not None:
        b_name = str(other)
        _, run_b = _runner(other, threads, name)
        checked_b = run_b.check_inputs
    else:
        assert torch is not None
        b_name = torch
        source = torch.rpartition(":")[0] or torch
        with errors.about(source), contextlib.redirect_stdout(sys.stderr):
            run_b, values = _torch(torch)
        checked_b = runner.check_inputs
    if inputs is not None:
        values = options.read_inputs(inputs, runner)
    elif values is None:
        values = execution.random_inputs(runner)
    with errors.about(model), output.stage("Running both"):
        a_inputs = runner.check_inputs(values)
        result = compare_lib.compare_outputs(
            runner(a_inputs), run_b(checked_b(values)), rtol=rtol, atol=atol
        )
        b_inputs = checked_b(values)
        times = interleaved(
            {"a": lambda: runner(a_inputs), "b": lambda: run_b(b_inputs)}, "b", _ROUNDS
        )
    if json:
        data = {"file": str(model), "other": b_name, "signature": name}
        seconds = {key: vars(timing) for key, timing in times.items()}
        output.print_json("compare", {**data, **result.to_dict(), "times": seconds})
    else:
        output.table(*result.rows())
        print()
        rows = [timing_row(str(model), times["a"]), timing_row(b_name, times["b"])]
        output.table(_TIMES, rows)
        output.summary(result.summary())
    if not result.close:
        raise typer.Exit(errors.FINDING)
