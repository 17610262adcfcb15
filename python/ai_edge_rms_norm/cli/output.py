"""The output of commands: tables, JSON, summaries and progress.

Results go to stdout, the rest to stderr. In a terminal a table is as wide as its
content, or a list where that does not fit, so that nothing is cut; elsewhere each item
is a line of values between tabs, below a line of names.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["print_json", "settings", "stage", "summary", "table", "without_log_lines"]

# Of the JSON documents; a new major number where a field changes its meaning or goes.
JSON_VERSION = 1
_PATIENCE = 1.0  # Seconds before a stage is shown.
_COLUMN_GAP = 2


@dataclasses.dataclass
class _Settings:
    """Of the running command.

    Attributes:
      quiet: Whether summaries are not printed.
      debug: Whether tracebacks and log lines of other packages are shown.
      stderr: Where to show what is not the result; None for sys.stderr.
    """

    quiet: bool = False
    debug: bool = False
    stderr: TextIO | None = None


settings = _Settings()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints items; nothing is cut, whatever the width of the terminal."""
    if not sys.stdout.isatty():
        if rows:
            for row in (columns, *rows):
                print("\t".join(" ".join(str(cell).split()) for cell in row))
        return
    cells = [columns, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    width = shutil.get_terminal_size().columns
    # Rich leaves out colours, but not bold.
    emphasis = "" if os.environ.get("NO_COLOR") else "bold"
    console = Console(width=width, highlight=False, soft_wrap=True)
    if sum(widths) + _COLUMN_GAP * (len(columns) - 1) <= width:
        padding = (0, _COLUMN_GAP, 0, 0)
        grid = Table(box=None, pad_edge=False, padding=padding, header_style=emphasis)
        for name in columns:
            grid.add_column(Text(name), no_wrap=True)
        for row in rows:
            grid.add_row(*map(Text, row))
        # The padding of the last column needs room, too.
        Console(width=width + _COLUMN_GAP, highlight=False).print(grid)
        return
    for row in rows:
        for i, (name, cell) in enumerate(zip(columns, row, strict=True)):
            if cell:
                line = Text("- " if i == 0 else "  ")
                console.print(line + Text(f"{name}: ", emphasis) + Text(cell))


def print_json(kind: str, data: dict[str, Any]) -> None:
    """Prints a document with its kind and version; docs/cli.md describes the fields.

    Numbers that JSON does not have, like infinity, are strings.
    """
    document = {"kind": kind, "version": JSON_VERSION, **data}
    print(json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return str(value)
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def summary(text: str) -> None:
    """Prints a line about the result, except with --quiet."""
    if not settings.quiet:
        print(text)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Shows on a terminal, on stderr, what takes longer than a second."""
    console = Console(file=settings.stderr or sys.stderr)
    if settings.quiet or not console.is_terminal:
        yield
        return
    status = console.status(Text(f"{name} …"))
    timer = threading.Timer(_PATIENCE, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        status.stop()


@contextlib.contextmanager
def without_log_lines() -> Iterator[None]:
    """Keeps what other packages log, in Python and in C++, off stderr.

    LiteRT and XLA write to the file descriptor itself and have no switch for it. The
    warnings of this package and `stage` still arrive.
    """
    if settings.debug:
        yield
        return
    sys.stderr.flush()
    try:
        descriptor = os.dup(2)
    except OSError:  # There is no stderr.
        yield
        return
    with (
        tempfile.TemporaryFile("w+") as log,
        os.fdopen(descriptor, "w", buffering=1) as shown,
        contextlib.redirect_stderr(log),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module="ai_edge_rms_norm")
        warnings.showwarning = lambda message, *_, **__: print(
            f"warning: {message}", file=shown
        )
        os.dup2(log.fileno(), 2)
        settings.stderr = shown
        try:
            yield
        finally:
            settings.stderr = None
            os.dup2(descriptor, 2)
