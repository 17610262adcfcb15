"""The command line as a whole: its commands, common options and entry point.

A command is a function in a module of its own, registered with `@app.command`. It has
the options --quiet and --debug without declaring them; --json it declares itself
(`options.Json`), where it has something to read out.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

import ai_edge_rms_norm
from ai_edge_rms_norm.cli import errors, output

__all__ = ["command", "main"]

_EPILOG = (
    "Each command has examples in its own --help. --install-completion adds completion"
    " to your shell, --show-completion prints it. Exit codes: 0 ok, 1 a finding or a"
    " comparison failed, 2 wrong usage or bad input."
)

app = typer.Typer(
    name="ai-edge-rms-norm",
    help="RMSNorm in .tflite, .litertlm and .task files: see, fuse, convert, run.",
    epilog=_EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    # Plain text: rich's help has boxes, which wrap in a narrow terminal.
    rich_markup_mode=None,
)

_COMMON = {
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print no summary.")],
    "debug": Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and all log lines.")
    ],
}


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Registers a function as a command, with the common options added."""

    @functools.wraps(function)
    def run(*, quiet: bool, debug: bool, **arguments: Any) -> None:
        output.settings.quiet = quiet
        output.settings.debug = debug
        with output.without_log_lines():
            function(**arguments)

    signature = inspect.signature(function, eval_str=True)
    parameters = [
        *(p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()),
        *(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind
            )
            for name, kind in _COMMON.items()
        ),
    ]
    # Typer reads the signature, which is not that of the wrapped function.
    del run.__wrapped__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    text = inspect.cleandoc(function.__doc__ or "")
    app.command(
        function.__name__,
        # \b keeps the lines of a paragraph.
        help=text.replace("\n\nExamples:", "\n\n\b\nExamples:"),
        short_help=text.partition("\n")[0],
    )(run)
    return function


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ai-edge-rms-norm {ai_edge_rms_norm.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """RMSNorm in .tflite, .litertlm and .task files: see, fuse, convert, run."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with its exit code.

    Args:
      arguments: Those behind the name of the program; default those of the process.
    """
    # Before anything is imported that reads them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    arguments = sys.argv[1:] if arguments is None else arguments
    raise SystemExit(errors.run(app, list(arguments)))
