"""Shows what a benchmark measured, on which machine, and writes it to files."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.table import Table

from ai_edge_rms_norm.tflite import flatbuffer

__all__ = ["publish"]


def publish(
    name: str,
    table: Table,
    report: Mapping[str, object],
    output: str | None,
    plot: Callable[[str, pathlib.Path], None],
) -> None:
    """Prints the table and the machine; writes JSON and a plot if asked to.

    Args:
      name: Names the files, `<name>.json` and `<name>.png`.
      table: The results as a person reads them.
      report: The JSON: facts by name in `machine`, perhaps the reasons of
        what was left out in `left_out`, and the results.
      output: Folder for the files, relative to where Bazel was called; None writes
        none.
      plot: Draws the results with a title into a file.
    """
    console = Console(width=200)
    console.print(table)
    for fact, value in report["machine"].items():
        console.print(f"{fact}: {value}")
    for peer, reason in report.get("left_out", {}).items():
        console.print(f"left out: {peer} ({reason})")
    if output is None:
        return
    folder = pathlib.Path(os.environ.get("BUILD_WORKING_DIRECTORY", ".")) / output
    text = json.dumps(report, indent=1) + "\n"
    flatbuffer.write_file(folder / f"{name}.json", text.encode())
    machine = report["machine"]
    title = f"{machine['cpu']}, {machine['threads']} thread(s)"
    plot(title, folder / f"{name}.png")
