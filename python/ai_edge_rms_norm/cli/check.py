"""`ai-edge-rms-norm check`."""

import pathlib
from typing import Annotated

import typer

from ai_edge_rms_norm.cli import app, errors, options, output
from ai_edge_rms_norm.cli.inspect import document, print_runtimes
from ai_edge_rms_norm.runtime import check as check_lib


@app.command
def check(
    model: options.Model,
    inputs: Annotated[
        pathlib.Path | None,
        typer.Option("--input", help="A .npz with the inputs; default random ones."),
    ] = None,
    signature: Annotated[
        str | None, typer.Option(help="The only signature to run; default all.")
    ] = None,
    plot: Annotated[
        pathlib.Path | None,
        typer.Option(help="Draw max|x| of each norm into this file."),
    ] = None,
    gpu: Annotated[
        bool,
        typer.Option("--gpu", help="Compare LiteRT's GPU accelerator with the CPU."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Run a file on the CPU and say which norms would overflow in float16.

    The exit code is 1 if one would, or with --gpu if float16 is wrong on the GPU; the
    cure is named.

    Examples:
      ai-edge-rms-norm check model.tflite
      ai-edge-rms-norm check model.tflite --input x.npz --plot norms.png
      ai-edge-rms-norm check model.tflite --input x.npz --gpu
    """
    with errors.about(model), output.stage(f"Running {model}"):
        report = check_lib.check(model, inputs, signature=signature, gpu=gpu)
    has_findings = bool(report.findings or report.gpu_findings)
    if plot is not None:
        with errors.about(plot):
            report.plot(plot)
    if json:
        runtimes = document(report.inspection)["runtimes"]
        data = {"file": str(model), **report.to_dict(), "runtimes": runtimes}
        output.print_json("check", data)
    else:
        output.table(*report.rows())
        if report.norms:
            print()
            print_runtimes(report.inspection)
        if report.gpu_rows()[1]:
            print()
            output.table(*report.gpu_rows())
        # With --quiet the findings alone say why the exit code is 1.
        if has_findings or not output.settings.quiet:
            print(report.summary())
    if has_findings:
        raise typer.Exit(errors.FINDING)
