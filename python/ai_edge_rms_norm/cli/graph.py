"""`ai-edge-rms-norm graph`."""

import json
import pathlib
import re
import socket
import sys
import tempfile
from typing import Annotated

import typer

from ai_edge_rms_norm.cli import app, errors, options, output
from ai_edge_rms_norm.cli.rewrite import STDOUT, check_output
from ai_edge_rms_norm.tflite import bundle, files, node_data

_PORT = 8080  # Model Explorer's default, too.


def _serve(
    path: pathlib.Path, models: list[bundle.BundledModel], data: list[str], port: int
) -> None:
    try:
        import model_explorer
    except ModuleNotFoundError as error:
        raise errors.InputError(
            "--serve needs Model Explorer: pip install ai-edge-model-explorer"
        ) from error
    with socket.socket() as probe:
        # Model Explorer looks for another one in the place of its default only.
        if port != _PORT and not probe.connect_ex(("localhost", port)):
            raise errors.InputError(f"--port: {port} is in use")
    config = model_explorer.config()
    with tempfile.TemporaryDirectory() as folder:
        for number, (model, text) in enumerate(zip(models, data, strict=True)):
            file = path
            if model.name:
                # Model Explorer tells models apart by the names of their files.
                name = re.sub(r"[^\w.-]", "_", model.name).removesuffix(".tflite")
                file = pathlib.Path(folder, f"{number}_{name}.tflite")
                file.write_bytes(model.content)
            config.add_model_from_path(str(file))
            config.add_node_data("RMSNorm", text, model_name=file.name)
        # It prints its address, and serves until Ctrl-C.
        model_explorer.visualize_from_config(
            config, port=port, no_open_in_browser=not sys.stdout.isatty()
        )


def _chosen(
    path: pathlib.Path, name: str | None, models: list[bundle.BundledModel]
) -> list[bundle.BundledModel]:
    if name is None:
        return models
    chosen = [model for model in models if model.name == name]
    if not chosen:
        names = ", ".join(repr(model.name) for model in models if model.name)
        raise errors.InputError(
            f"{path}: it has no model {name!r}, but {names or 'only itself'}"
        )
    return chosen


@app.command
def graph(
    model: options.Model,
    destination: Annotated[
        pathlib.Path | None,
        typer.Option("--output", "-o", help="The .json to write; - is stdout."),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show the file in Model Explorer.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--model", help="The only one of a bundle.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of --serve.")] = _PORT,
) -> None:
    """Show the graph of a file in Model Explorer, with its norms named and coloured.

    Norms are green if fused, yellow if decomposed, red if left alone. -o writes names
    and colours as node data, which Model Explorer loads beside the model.

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
        models = _chosen(model, name, list(bundle.read_bundle(model).models))
        graphs = [node_data.model_node_data(m.content, str(model)) for m in models]
    data = [json.dumps(of_model, indent=2) for of_model in graphs]
    if destination is not None and len(models) > 1:
        names = ", ".join(repr(m.name) for m in models)
        raise errors.InputError(
            f"{model}: node data is of one model, choose with --model among {names}"
        )
    if destination == STDOUT:
        print(*data)
    elif destination is not None:
        files.write_file(destination, [f"{data[0]}\n".encode()])
        nodes = sum(len(entry["results"]) for entry in graphs[0].values())
        output.summary(f"{destination} written: {nodes} operators of norms")
    if serve:
        _serve(model, models, data, port)
