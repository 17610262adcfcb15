"""Arguments and options that several commands share."""

import pathlib
from typing import Annotated

import typer

__all__ = ["Json", "Model", "RangeSafe"]

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
