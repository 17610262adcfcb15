"""Arguments and options that several commands share."""

import pathlib
from typing import Annotated

import numpy as np
import typer

from ai_edge_rms_norm.cli import errors
from ai_edge_rms_norm.runtime import execution

__all__ = ["Json", "Model", "RangeSafe", "Tflite", "numbers", "read_inputs"]

Json = Annotated[
    bool, typer.Option("--json", help="Print a JSON document; docs/cli.md has fields.")
]
Model = Annotated[pathlib.Path, typer.Argument(help="A .tflite, .litertlm or .task.")]
RangeSafe = Annotated[
    bool,
    typer.Option(
        "--range-safe/--plain",
        help="The form of decomposed norms and of composites: plain is faster on CPUs,"
        " but overflows in float16 from |x| = 256 on.",
    ),
]
Tflite = Annotated[pathlib.Path, typer.Argument(help="A .tflite.")]


def numbers(option: str, text: str) -> list[int]:
    """Returns the numbers of an option, each once.

    Raises:
      InputError: It is something else than numbers from 1 on, with commas between.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise errors.InputError(
            f"{option} must be numbers from 1 on, as in 1,2, got {text!r}"
        )
    return list(dict.fromkeys(int(part) for part in parts))


def read_inputs(path: pathlib.Path, runner: execution.Runner) -> dict[str, np.ndarray]:
    """Reads the inputs of a model from a .npz, or its only one from a .npy.

    Raises:
      InputError: The file is neither, or the model has several inputs.
    """
    with errors.about(path):
        values = execution.read_inputs(path)
        if isinstance(values, dict):
            return values
        if len(runner.inputs) != 1:
            raise ValueError(
                f"the model has the inputs {list(runner.inputs)}: expected a .npz"
            )
        return dict.fromkeys(runner.inputs, values)
