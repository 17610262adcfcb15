"""Runs the command line in the process of the test."""

import contextlib
import io
import os

from ai_edge_rms_norm.cli import main as cli


def run(*arguments) -> tuple[int, str, str]:
    """Runs the command line in this process; returns exit code, stdout and stderr.

    Bytes that are not text are surrogates.
    """
    output, errors = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        # Progress goes to the original descriptor of stderr.
        descriptor, (reader, writer) = os.dup(2), os.pipe()
        os.dup2(writer, 2)
        try:
            cli.main(list(map(str, arguments)))
            raise AssertionError("it must exit")
        except SystemExit as error:
            code = error.code
        finally:
            os.dup2(descriptor, 2)
            os.close(writer)
            os.close(descriptor)
    with os.fdopen(reader) as shown:
        text = shown.read()
    output.flush()
    content = output.buffer.getvalue().decode(errors="surrogateescape")
    return code, content, errors.getvalue() + text
