"""`ai-edge-rms-norm graph`."""

import json
import pathlib
import sys
from typing import Annotated

import typer

from ai_edge_rms_norm.cli import app, errors, options, output
from ai_edge_rms_norm.cli.rewrite import STDOUT, check_output
from ai_edge_rms_norm.tflite import files, node_data


def _serve(model: pathlib.Path, data: str, port: int) -> None:
    try:
        import model_explorer
    except ModuleNotFoundError as error:
        raise errors.InputError(
            "--serve needs Model Explorer: pip install ai-edge-model-explorer"
        ) from error
    config = model_explorer.config()
    config.add_model_from_path(str(model))
    config.add_node_data("RMSNorm", data)
    # It prints its address, and serves until Ctrl-C.
    model_explorer.visualize_from_config(
        config, port=port, no_open_in_browser=not sys.stdout.isatty()
    )


@app.command
def graph(
    model: options.Model,
    destination: Annotated[
        pathlib.Path | None,
        typer.Option("--output", "-o", help="The .json to write; - is stdout."),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show the model in Model Explorer.")
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of --serve.")] = 8080,
) -> None:
    r"""Show the graph of a .tflite in Model Explorer, with its norms coloured.

    Norms are green if fused, yellow if decomposed, red if left alone. -o writes the
    colours as node data, which Model Explorer loads beside the model.

    \b
    Examples:
      ai-edge-rms-norm graph model.tflite --serve
      ai-edge-rms-norm graph model.tflite -o norms.json
    """
    if destination is None and not serve:
        raise errors.InputError("give -o FILE.json, --serve, or both")
    if destination is not None and destination.suffix in (".html", ".htm"):
        raise errors.InputError(
            f"{destination}: Model Explorer does not write HTML; --serve shows the"
            " graph, and -o writes a .json"
        )
    if destination is not None:
        check_output(destination)
    with errors.about(model):
        graphs = node_data.node_data(model)
    data = json.dumps(graphs, indent=2)
    if destination == STDOUT:
        print(data)
    elif destination is not None:
        files.write_file(destination, [f"{data}\n".encode()])
        nodes = sum(len(entry["results"]) for entry in graphs.values())
        output.summary(f"{destination} written: {nodes} operators of norms")
    if serve:
        _serve(model, data, port)
