"""`ai-edge-rms-norm doctor`."""

import dataclasses
from typing import Annotated

import typer

from ai_edge_rms_norm import diagnosis
from ai_edge_rms_norm.cli import app, options, output

_STATES = {None: "", True: "ok", False: "fails"}


@app.command
def doctor(
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that each trial may take.")
    ] = 120.0,
    json: options.Json = False,
) -> None:
    """Try out what works on this machine.

    Its output belongs into bug reports. The exit code is 1 if the delegate fails.

    Examples:
      ai-edge-rms-norm doctor
      ai-edge-rms-norm doctor --json
    """
    with output.stage("Trying out delegate, accelerators and converters"):
        findings = diagnosis.diagnose(timeout)
    if json:
        items = [dataclasses.asdict(finding) for finding in findings]
        output.print_json("doctor", {"findings": items})
    else:
        rows = [[f.name, _STATES[f.is_ok], f.value, f.remedy] for f in findings]
        output.table(["what", "state", "value", "remedy"], rows)
    # Everything else is optional.
    if any(f.is_ok is False and "Interpreter" in f.name for f in findings):
        raise typer.Exit(1)
