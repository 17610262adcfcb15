"""`ai-edge-rms-norm convert`."""

import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ai_edge_rms_norm.cli import app, errors, options, output
from ai_edge_rms_norm.cli.inspect import print_runtimes
from ai_edge_rms_norm.cli.rewrite import STDOUT, check_output
from ai_edge_rms_norm.tflite import bundle, inspection
from ai_edge_rms_norm.tflite.encoding import Encoding

if TYPE_CHECKING:
    from ai_edge_rms_norm.conversion import huggingface, sources
    from ai_edge_rms_norm.ops.replace import ReplaceReport

_DYNAMIC_INT8 = "dynamic_int8"
# Names of recipes of ai-edge-quantizer, by ours.
_RECIPES = {
    _DYNAMIC_INT8: "dynamic_wi8_afp32",
    "dynamic_int4": "dynamic_wi4_afp32",
    "weight_only_int8": "weight_only_wi8_afp32",
    "weight_only_int4": "weight_only_wi4_afp32",
}


def _load(source: str, dynamic: bool) -> "sources.Source | huggingface.Checkpoint":
    try:
        import torch

        from ai_edge_rms_norm.conversion import huggingface, sources
    except ModuleNotFoundError as error:
        raise errors.InputError(
            f"{error.name} is not installed: pip install 'ai-edge-rms-norm[convert]'"
        ) from error
    if huggingface.is_checkpoint(source):
        if dynamic:
            raise errors.InputError(
                f"{source}: --dynamic is for factories; a checkpoint has the sizes of"
                " --prefill-lengths and --cache-length"
            )
        return huggingface.load_checkpoint(source)
    loaded = sources.load_source(source)
    if not dynamic:
        return loaded
    if source.endswith(".pt2"):
        raise errors.InputError(
            f"{source}: --dynamic is for factories; a .pt2 has the open sizes that it"
            " was exported with"
        )
    if loaded.kwargs:
        raise errors.InputError(f"{source}: --dynamic takes positional inputs only")
    rows = torch.export.Dim("rows")
    shapes = tuple({0: rows} if a.dim() else {} for a in loaded.args)
    return loaded._replace(dynamic_shapes=shapes)


@contextlib.contextmanager
def _converter(source: str, name: str) -> Iterator[None]:
    """Gives what a converter raises, of any class, the name of the source."""
    try:
        with errors.about(source), contextlib.redirect_stdout(sys.stderr):
            yield
    except errors.InputError:
        raise
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "without a message")
        raise errors.InputError(
            f"{source}: {name} fails: {type(error).__name__}: {line}; --debug shows"
            " where"
        ) from error


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


def _print_replaced(report: "ReplaceReport") -> None:
    for skipped in report.skipped:
        name = skipped.name or "the model"
        print(f"not replaced: {name} ({skipped.type}): {skipped.reason}")
    output.summary(f"{len(report.replaced)} modules replaced")


@app.command
def convert(
    source: Annotated[
        str, typer.Argument(help="FILE.py:FACTORY, a .pt2, or a checkpoint.")
    ],
    destination: Annotated[
        pathlib.Path,
        typer.Option("--output", "-o", help="The .tflite to write; - is stdout."),
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
    prefill_lengths: Annotated[
        str, typer.Option(help="Of a checkpoint: tokens per prefill, as in 16,128.")
    ] = "128",
    cache_length: Annotated[
        int, typer.Option(min=1, help="Of a checkpoint: tokens in the KV cache.")
    ] = 4096,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace norm modules first.")
    ] = False,
    fuse_decomposed: Annotated[
        bool, typer.Option("--fuse-decomposed", help="Fuse decomposed norms.")
    ] = False,
    fuse_add: Annotated[
        bool, typer.Option("--fuse-add", help="Fuse residual additions, too.")
    ] = False,
    range_safe: options.RangeSafe = True,
    json: options.Json = False,
) -> None:
    """Convert a PyTorch module to a .tflite.

    FACTORY is a function without parameters that returns (module, example inputs). A
    checkpoint is a folder of a language model of Hugging Face Transformers, or its
    config.json for random weights; its norms are always replaced.

    Examples:
      ai-edge-rms-norm convert model.py:make -o model.tflite --fuse-decomposed
      ai-edge-rms-norm convert model.pt2 -o model.tflite --encoding ml_drift
      ai-edge-rms-norm convert model.py:make -o int8.tflite --quantize dynamic_int8
      ai-edge-rms-norm convert gemma-3-270m -o gemma.tflite --cache-length 1024
    """
    check_output(destination)
    lengths = options.numbers("--prefill-lengths", prefill_lengths)
    if quantize is not None and quantize not in _RECIPES:
        _quantized(b"", quantize)
    with (
        output.stage(f"Loading {source}"),
        errors.about(source.rpartition(":")[0] or source),
        contextlib.redirect_stdout(sys.stderr),
    ):
        loaded = _load(source, dynamic)
    import ai_edge_rms_norm as arn
    from ai_edge_rms_norm.conversion import huggingface

    to_stdout = destination == STDOUT
    report = None
    if isinstance(loaded, huggingface.Checkpoint):
        report = loaded.report
    elif replace:
        report = arn.replace_rms_norm(loaded.module)
    if report is not None and not to_stdout and not json:
        _print_replaced(report)
    settings: dict[str, Any] = {
        "encoding": encoding,
        "backend": backend,
        "fuse_decomposed": fuse_decomposed,
        "fuse_add": fuse_add,
        "range_safe": range_safe,
    }
    with output.stage("Converting"), _converter(source, "the conversion"):
        if isinstance(loaded, huggingface.Checkpoint):
            model = loaded.convert(
                prefill_lengths=lengths, cache_length=cache_length, **settings
            )
        else:
            model = arn.convert(
                loaded.module,
                loaded.args,
                loaded.kwargs,
                dynamic_shapes=loaded.dynamic_shapes,
                **settings,
            )
        content = model.model_content()
    if quantize is not None:
        with output.stage("Quantizing"), _converter(source, "the quantizer"):
            content = _quantized(content, quantize)
    if to_stdout:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
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
