"""`ai-edge-rms-norm fuse` and `translate`."""

import enum
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ai_edge_rms_norm import backends
from ai_edge_rms_norm.cli import app, errors, options, output
from ai_edge_rms_norm.cli.inspect import document, print_runtimes
from ai_edge_rms_norm.tflite import rewriting
from ai_edge_rms_norm.tflite.encoding import Encoding

STDOUT = pathlib.Path("-")


class Purpose(str, enum.Enum):
    """Where the file shall run; `backends.encoding_for` explains the values."""

    DELEGATE = "delegate"
    GPU = "gpu"
    NPU = "npu"
    ANY = "any"


_Output = Annotated[
    pathlib.Path, typer.Argument(help="The file to write; - is stdout.")
]
_For = Annotated[
    Purpose | None,
    typer.Option("--for", help="Where the file shall run; chooses the encoding."),
]
_To = Annotated[
    Encoding | None, typer.Option("--to", "--encoding", help="The encoding to write.")
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Write nothing, only report.")]
_InPlace = Annotated[
    bool, typer.Option("--in-place", help="Allow the output to be the input.")
]


def _encoding(purpose: Purpose | None, to: Encoding | None) -> Encoding:
    if purpose is not None and to is not None:
        raise errors.InputError("--for and --to exclude each other")
    if to is not None:
        return to
    return Encoding(backends.encoding_for((purpose or Purpose.DELEGATE).value))


def check_output(path: pathlib.Path) -> None:
    """Raises InputError, before work begins, for what cannot be written to."""
    if path == STDOUT:
        if sys.stdout.isatty():
            raise errors.InputError("-: a model is not written to a terminal")
    elif not path.parent.is_dir():
        raise errors.InputError(f"{path}: the folder {path.parent} does not exist")
    elif path.is_dir():
        raise errors.InputError(f"{path}: it is a folder")


def _rewrite(
    rewrite: Callable[..., rewriting.RewrittenFile],
    source: pathlib.Path,
    destination: pathlib.Path,
    encoding: Encoding,
    *,
    range_safe: bool,
    dry_run: bool,
    in_place: bool,
    json: bool,
) -> None:
    if not dry_run:
        check_output(destination)
    to_stdout = destination == STDOUT and not dry_run
    replaces = not to_stdout and destination.exists()
    is_input = replaces and source.exists() and os.path.samefile(source, destination)
    if is_input and not in_place and not dry_run:
        raise errors.InputError(
            f"{destination}: it is the input; --in-place allows to replace it"
        )
    with errors.about(source), output.stage(f"Reading {source}"):
        result = rewrite(source, encoding, range_safe=range_safe)
    if not dry_run:
        with errors.about(destination), output.stage(f"Writing {destination}"):
            if to_stdout:
                sys.stdout.buffer.writelines(result.chunks())
                sys.stdout.buffer.flush()
            else:
                result.write(destination)
    if to_stdout:
        return  # Stdout is the model's.
    if json:
        output.print_json("rewrite", _document(result, source, destination, dry_run))
        return
    _print(result, destination, dry_run=dry_run, replaced=replaces and not dry_run)


def _print(
    result: rewriting.RewrittenFile,
    destination: pathlib.Path,
    *,
    dry_run: bool,
    replaced: bool,
) -> None:
    for norm in result.left:
        reason = norm.reason or _why_not_translated(norm.encoding)
        place = f"{norm.model}, " if norm.model else ""
        place += f"subgraph {norm.subgraph}, operator {norm.operator}"
        print(f"left alone: {norm.title} ({place}): {reason}")
    if not output.settings.quiet and result.after.norms:
        print_runtimes(result.after)
    verb = "would be written" if dry_run else "replaced" if replaced else "written"
    if not result.changed and result.already and not result.left:
        state = f"already fused: all {result.already} norms are {result.encoding}"
        if result.encoding in (Encoding.DECOMPOSED.value, backends.PLAIN):
            state = f"all {result.already} norms are decomposed already"
    else:
        state = f"{result.changed} norms became {result.encoding}"
        state += f", {result.already} were already" if result.already else ""
        state += f", {len(result.left)} left alone" if result.left else ""
        state += f"; {result.operators_before} operators became"
        state += f" {result.operators_after}"
    output.summary(f"{destination} {verb}: {state}")


def _why_not_translated(encoding: str | None) -> str:
    if encoding == backends.PLAIN:
        return "it is decomposed; the command fuse takes it"
    return f"it stays {encoding}"


def _document(
    result: rewriting.RewrittenFile,
    source: pathlib.Path,
    destination: pathlib.Path,
    dry_run: bool,
) -> dict[str, Any]:
    return {
        "file": str(source),
        "output": None if dry_run else str(destination),
        "encoding": result.encoding,
        "changed": result.changed,
        "already": result.already,
        "operators_before": result.operators_before,
        "operators_after": result.operators_after,
        "result": document(result.after),
    }


def _command(
    rewrite: Callable[..., rewriting.RewrittenFile],
) -> Callable[[Callable[[], None]], Callable[..., None]]:
    """Returns a decorator that makes a command of a function's name and docstring."""

    def decorator(function: Callable[[], None]) -> Callable[..., None]:
        def run(
            model: options.Model,
            destination: _Output,
            purpose: _For = None,
            to: _To = None,
            range_safe: options.RangeSafe = True,
            dry_run: _DryRun = False,
            in_place: _InPlace = False,
            json: options.Json = False,
        ) -> None:
            _rewrite(
                rewrite,
                model,
                destination,
                _encoding(purpose, to),
                range_safe=range_safe,
                dry_run=dry_run,
                in_place=in_place,
                json=json,
            )

        run.__name__, run.__doc__ = function.__name__, function.__doc__
        return app.command(run)

    return decorator


@_command(rewriting.fuse_file)
def fuse() -> None:
    """Write a file with every norm in one encoding.

    Without --for and --to, for a runtime with the delegate.

    Examples:
      ai-edge-rms-norm fuse model.tflite fused.tflite --for gpu
      ai-edge-rms-norm fuse model.litertlm fixed.litertlm --to decomposed
      ai-edge-rms-norm fuse model.tflite model.tflite --in-place
      ai-edge-rms-norm fuse model.tflite fused.tflite --dry-run
    """


@_command(rewriting.translate_file)
def translate() -> None:
    """Write a file with its norm operators in another encoding.

    Unlike fuse, it leaves decomposed norms of other tools alone.

    Examples:
      ai-edge-rms-norm translate model.tflite custom.tflite --to custom
      ai-edge-rms-norm translate model.tflite gpu.tflite --for gpu
    """
