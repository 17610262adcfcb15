"""Arguments and options that several commands share."""

import pathlib
from typing import Annotated

import typer

__all__ = ["Json", "Model"]

Json = Annotated[
    bool, typer.Option("--json", help="Print a JSON document; docs/cli.md has fields.")
]
Model = Annotated[pathlib.Path, typer.Argument(help="A .tflite, .litertlm or .task.")]
