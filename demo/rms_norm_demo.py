"""The main job: PyTorch blocks to .tflite with fused RMSNorm, run and compared.

Prints the operators of each model, its agreement with PyTorch and what fusing gains;
exits with status 1 when an output does not agree.
"""

import contextlib
import os
import pathlib
import platform
import sys
import tempfile
import time
from importlib import metadata

import numpy as np
import torch
from absl import app, flags, logging
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.cli import output
from ai_edge_rms_norm.tflite import flatbuffer
from testing import timing, transformer

with output.without_log_lines():  # Of what the front end imports.
    from ai_edge_rms_norm.conversion.torch_frontend import FRONT_END

_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for the .tflite files; default: a temporary one."
)
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of the interpreters.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 50, "Timed rounds, interleaved.", 3)

# float32 arithmetic in another order: agreement relative to the largest output.
_TOLERANCE = 1e-5

_COLUMNS = (
    "model",
    "rel error",
    "convert s",
    "fused µs",
    "plain µs",
    "ratio",
    "quartiles",
)
_OPERATOR_NAMES = {
    value: name
    for name, value in vars(schema.BuiltinOperator).items()
    if name.isupper()
}


def _models(norm: transformer.NormFactory):
    hidden = 640
    yield (
        "one_norm",
        norm(2304),
        torch.randn(128, 2304, generator=torch.Generator().manual_seed(0)),
    )
    yield (
        "mlp_block",
        transformer.MlpBlock(norm, hidden, 2048),
        torch.randn(1, 16, hidden, generator=torch.Generator().manual_seed(1)),
    )
    yield (
        "decoder_layer",
        transformer.DecoderLayer(norm, hidden, 2048, 4, 1, 256),
        torch.randn(1, 16, hidden, generator=torch.Generator().manual_seed(2)),
    )


def _operators(content: bytes) -> dict[str, int]:
    """Counts operators by name; custom calls by their call target."""
    model = flatbuffer.read(content)
    targets = {(n.subgraph, n.operator): n.call_target for n in arn.find_ops(model)}
    counts: dict[str, int] = {}
    for s, subgraph in enumerate(model.subgraphs):
        for o, operator in enumerate(subgraph.operators):
            code = model.operatorCodes[operator.opcodeIndex].builtinCode
            name = _OPERATOR_NAMES[code]
            if (s, o) in targets:
                name = f"{name} {targets[s, o]}"
            counts[name] = counts.get(name, 0) + 1
    return counts


def _set_up(interpreter: litert.Interpreter, x: np.ndarray) -> litert.Interpreter:
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter


def _output(interpreter: litert.Interpreter) -> np.ndarray:
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def _convert(module: torch.nn.Module, x: torch.Tensor) -> arn.Model:
    with contextlib.redirect_stdout(sys.stderr):  # litert-torch prints its stages.
        return arn.convert(module, (x,))


def _run(folder: pathlib.Path) -> bool:
    agrees = True
    fused_models = _models(arn.RMSNorm)
    decomposed_models = _models(transformer.DecomposedRMSNorm)
    results = []

    for (name, fused, x), (_, decomposed, _) in zip(
        fused_models, decomposed_models, strict=True
    ):
        transformer.randomize(fused)
        decomposed.load_state_dict(fused.state_dict())
        start = time.perf_counter()
        model = _convert(fused, x)
        conversion_time = time.perf_counter() - start
        path = folder / f"{name}.tflite"
        model.export(path)
        decomposed_content = bytes(_convert(decomposed.eval(), x))

        print(path)
        counts = _operators(bytes(model)).items()
        output.table(("operator", "count"), [(o, str(n)) for o, n in counts])
        print()

        ours = _set_up(
            arn.Interpreter(model_path=path, num_threads=_THREADS.value), x.numpy()
        )
        stock = _set_up(
            litert.Interpreter(
                model_content=decomposed_content, num_threads=_THREADS.value
            ),
            x.numpy(),
        )
        with torch.no_grad():
            expected = fused(x).numpy()
        error = np.abs(_output(ours) - expected)
        scale = np.abs(expected).max()
        agrees &= bool(error.max() <= _TOLERANCE * scale)  # False for NaN, too.
        times = timing.interleaved(
            {"fused": ours.invoke, "decomposed": stock.invoke}, "fused", _ROUNDS.value
        )
        ratio = times["decomposed"]
        results.append(
            (
                name,
                f"{error.max() / scale:.1e}",
                f"{conversion_time:.2f}",
                f"{times['fused'].median * 1e6:.1f}",
                f"{ratio.median * 1e6:.1f}",
                f"{ratio.ratio:.2f}",
                f"{ratio.ratio_low:.2f} to {ratio.ratio_high:.2f}",
            )
        )
    output.table(_COLUMNS, results)
    return agrees


def main(_) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # litert-torch logs every operator.
    folder = pathlib.Path(_OUTPUT.value or tempfile.mkdtemp(prefix="rms_norm_demo_"))
    # `bazel run` changes the folder; paths are relative to where the user is.
    folder = pathlib.Path(os.environ.get("BUILD_WORKING_DIRECTORY", ".")) / folder
    with output.without_log_lines():
        agrees = _run(folder)
    versions = ", ".join(
        (
            f"torch {metadata.version('torch')}",
            FRONT_END.name,
            f"ai-edge-litert {metadata.version('ai-edge-litert')}",
        )
    )
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, kernel variant"
        f" {arn.kernel_variant()}, {_THREADS.value} thread(s), medians of"
        f" {_ROUNDS.value} interleaved rounds, ratio plain / fused of each round;"
        f" {versions}"
    )
    if not agrees:
        print(f"the outputs differ by more than {_TOLERANCE} of the scale")
        sys.exit(1)
    print(f"the outputs agree within {_TOLERANCE} of the largest output")


if __name__ == "__main__":
    app.run(main)
