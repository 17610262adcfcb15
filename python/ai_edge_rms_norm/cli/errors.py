"""One place that makes one line and an exit code of every error."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import typer

from ai_edge_rms_norm.cli import output

__all__ = ["FINDING", "InputError", "about", "run"]

FINDING = 1
_BAD_INPUT = 2
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it.
# click's class, which typer contains or imports, depending on its version.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]


class InputError(Exception):
    """Bad usage or input; the message is `FILE: cause`, or a cause without a file."""


@contextlib.contextmanager
def about(path: str | os.PathLike[str]) -> Iterator[None]:
    """Gives the errors that a file causes its name.

    Raises:
      InputError: Instead of OSError, ValueError, RuntimeError and ImportError.
    """
    try:
        yield
    except (BrokenPipeError, InputError):
        raise
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        name = os.fspath(path)
        if isinstance(error, OSError) and error.strerror:
            name = os.fsdecode(error.filename or name)
            cause = error.strerror
        else:
            cause = str(error).removeprefix(name)
            cause = cause.removeprefix(":").strip().removeprefix("is ")
        raise InputError(f"{name}: {cause or type(error).__name__}") from error


def _message(error: BaseException) -> str:
    if isinstance(error, _USAGE_ERROR):
        message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        return f"{message}; --help shows the usage"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(
        error, (ImportError, InputError, OSError, RuntimeError, TypeError, ValueError)
    ):
        return str(error) or type(error).__name__
    return (
        f"unexpected {type(error).__name__}: {error}; this is a bug of"
        " ai-edge-rms-norm, --debug shows where"
    )


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Runs the application; returns the exit code.

    An error is one line on stderr; with --debug, the traceback goes before it.
    """
    output.settings.debug = output.settings.quiet = False
    try:
        code = app(list(arguments), standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        # Of a reader that has enough, like head; click makes a SystemExit of it.
        if BrokenPipeError not in map(type, (error, error.__context__)):
            print(f"error: a package ends with {error!r}", file=sys.stderr)
            return _BAD_INPUT
        # Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except typer.Exit as error:
        return error.exit_code
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # It prints the help.
            typer.echo(error.format_message(), err=True)  # type: ignore[attr-defined]
            return _BAD_INPUT
        if output.settings.debug:
            import traceback

            traceback.print_exc()
        line = " ".join(_message(error).split())
        print(f"error: {line}", file=sys.stderr)
        return _BAD_INPUT
