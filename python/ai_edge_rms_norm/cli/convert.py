"""`ai-edge-rms-norm convert`."""

import contextlib
import pathlib
import sys
from typing import Annotated, Any

import typer

from ai_edge_rms_norm.cli import app, errors, options, output
from ai_edge_rms_norm.cli.inspect import print_runtimes
from ai_edge_rms_norm.cli.rewrite import check_output
from ai_edge_rms_norm.tflite import bundle, inspection
from ai_edge_rms_norm.tflite.encoding import Encoding

_DYNAMIC_INT8 = "dynamic_int8"
# Names of recipes of ai-edge-quantizer, by ours.
_RECIPES = {
    _DYNAMIC_INT8: "dynamic_wi8_afp32",
    "dynamic_int4": "dynamic_wi4_afp32",
    "weight_only_int8": "weight_only_wi8_afp32",
    "weight_only_int4": "weight_only_wi4_afp32",
}


def _load(source: str, dynamic: bool) -> tuple[Any, tuple[Any, ...], Any, Any]:
    try:
        import torch

        from ai_edge_rms_norm.conversion import sources
    except ModuleNotFoundError as error:
        raise errors.InputError(
            f"{error.name} is not installed: pip install 'ai-edge-rms-norm[convert]'"
        ) from error
    module, args, kwargs = sources.load_source(source)
    if not dynamic:
        return module, args, kwargs, None
    if kwargs:
        raise errors.InputError(f"{source}: --dynamic takes positional inputs only")
    rows = torch.export.Dim("rows")
    return module, args, kwargs, tuple({0: rows} if a.dim() else {} for a in args)


def _quantized(content: bytes, recipe: str) -> bytes:
    if recipe not in _RECIPES:
        raise errors.InputError(
            f"--quantize must be one of {', '.join(_RECIPES)}, got {recipe!r}"
        )
    try:
        from ai_edge_quantizer import quantizer as quantizer_lib
        from ai_edge_quantizer import recipe as recipes
    except ModuleNotFoundError as error:
        raise errors.InputError(
            "--quantize needs ai-edge-quantizer: pip install ai-edge-quantizer"
        ) from error
    quantizer = quantizer_lib.Quantizer(bytearray(content))
    quantizer.load_quantization_recipe(getattr(recipes, _RECIPES[recipe])())
    return bytes(quantizer.quantize().quantized_model)


@app.command
def convert(
    source: Annotated[str, typer.Argument(help="FILE.py:FACTORY or an exported .pt2.")],
    destination: Annotated[
        pathlib.Path, typer.Option("--output", "-o", help="The .tflite to write.")
    ],
    encoding: Annotated[
        Encoding, typer.Option(help="The encoding of the norms.")
    ] = Encoding.CUSTOM,
    backend: Annotated[
        str, typer.Option(help="The converter: auto, litert or tensorflow.")
    ] = "auto",
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Leave the first dimension open.")
    ] = False,
    quantize: Annotated[
        str | None, typer.Option(help=f"Quantize: {', '.join(_RECIPES)}.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace norm modules first.")
    ] = False,
    fuse_decomposed: Annotated[
        bool, typer.Option("--fuse-decomposed", help="Fuse decomposed norms.")
    ] = False,
    fuse_add: Annotated[
        bool, typer.Option("--fuse-add", help="Fuse residual additions, too.")
    ] = False,
    json: options.Json = False,
) -> None:
    r"""Convert a PyTorch module to a .tflite.

    FACTORY is a function without parameters that returns (module, example inputs).

    \b
    Examples:
      ai-edge-rms-norm convert model.py:make -o model.tflite --fuse-decomposed
      ai-edge-rms-norm convert model.pt2 -o model.tflite --encoding ml_drift
      ai-edge-rms-norm convert model.py:make -o int8.tflite --quantize dynamic_int8
    """
    check_output(destination)
    if quantize is not None and quantize not in _RECIPES:
        _quantized(b"", quantize)
    with (
        output.stage(f"Loading {source}"),
        errors.about(source.rpartition(":")[0] or source),
        contextlib.redirect_stdout(sys.stderr),
    ):
        module, args, kwargs, dynamic_shapes = _load(source, dynamic)
    import ai_edge_rms_norm as arn

    if replace:
        report = arn.replace_rms_norm(module)
        output.summary(f"{len(report.replaced)} modules replaced")
    # The converter prints its progress.
    with (
        output.stage("Converting"),
        errors.about(source),
        contextlib.redirect_stdout(sys.stderr),
    ):
        content = arn.convert(
            module,
            args,
            kwargs,
            encoding=encoding,
            backend=backend,
            dynamic_shapes=dynamic_shapes,
            fuse_decomposed=fuse_decomposed,
            fuse_add=fuse_add,
        ).model_content()
    if quantize is not None:
        with (
            output.stage("Quantizing"),
            errors.about(source),
            contextlib.redirect_stdout(sys.stderr),
        ):
            content = _quantized(content, quantize)
    arn.Model(content).export(destination)
    models = [bundle.BundledModel("", memoryview(content))]
    result = inspection.inspect_models("tflite", models)
    if json:
        from ai_edge_rms_norm.cli.inspect import document

        data = {"file": source, "output": str(destination), "result": document(result)}
        output.print_json("convert", data)
        return
    if not output.settings.quiet:
        print_runtimes(result)
    output.summary(
        f"{destination} written: {len(result.norms)} norms, {len(content)} bytes"
    )
