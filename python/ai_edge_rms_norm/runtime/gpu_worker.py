"""Runs a .tflite on LiteRT's GPU accelerator, in a process of its own.

The accelerator may end the process; `runtime.gpu` starts it and says what came out.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.compiled_model import (
    CompiledModel,
    GpuOptions,
    HardwareAccelerator,
    Options,
)

__all__ = ["main"]


def main(folder: str) -> None:
    """Runs what the files of a folder ask for, and writes the result beside them.

    Args:
      folder: Holds `model.tflite`; `request.json` with `float32`, and `runs`, each with
        `signature` (null for a model without any), the names of its `inputs` and
        `outputs`; and `inputs.npz`, whose `I_J` is input J of run I. `result.json` will
        have `fully_accelerated`, or `error`; `outputs.npz` the outputs.
    """
    path = pathlib.Path(folder)
    request = json.loads((path / "request.json").read_text())
    result: dict[str, Any]
    try:
        with np.load(path / "inputs.npz", allow_pickle=False) as inputs:
            outputs, fully_accelerated = _run(
                path / "model.tflite", request["float32"], request["runs"], inputs
            )
        np.savez(path / "outputs.npz", **outputs)  # type: ignore[arg-type]
        result = {"fully_accelerated": fully_accelerated}
    except (RuntimeError, ValueError) as error:
        result = {"error": str(error)}
    (path / "result.json").write_text(json.dumps(result))


def _run(
    path: pathlib.Path,
    float32: bool,
    runs: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], bool]:
    model = CompiledModel.from_file(
        str(path),
        options=Options(
            hardware_accelerators=HardwareAccelerator.GPU,
            gpu_options=GpuOptions(enforce_f32=float32),
        ),
    )
    outputs = {}
    for i, run in enumerate(runs):
        values = [inputs[f"{i}_{j}"] for j in range(len(run["inputs"]))]
        for j, y in enumerate(_run_once(model, run, values)):
            outputs[f"{i}_{j}"] = y
    return outputs, model.is_fully_accelerated()


def _run_once(
    model: CompiledModel, run: Mapping[str, Any], values: Sequence[np.ndarray]
) -> list[np.ndarray]:
    signatures = model.get_signature_list()
    key = run["signature"]
    if key is None:
        # LiteRT makes one up, whose names and their order are those of the subgraph.
        key = next(iter(signatures))
        sources = list(signatures[key]["inputs"])
        targets = list(signatures[key]["outputs"])
    else:
        sources, targets = run["inputs"], run["outputs"]
    details = model.get_input_tensor_details(key)
    for name, value in zip(sources, values, strict=True):
        if list(details[name]["shape"]) != list(value.shape):
            model.resize_input_tensor_by_name(key, name, value.shape)
    written = {name: model.create_input_buffer_by_name(key, name) for name in sources}
    for name, value in zip(sources, values, strict=True):
        written[name].write(np.ascontiguousarray(value))
    read = {name: model.create_output_buffer_by_name(key, name) for name in targets}
    model.run_by_name(key, written, read)
    details = model.get_output_tensor_details(key)
    return [
        read[name]
        .read(int(np.prod(details[name]["shape"])), np.dtype(details[name]["dtype"]))
        .reshape(details[name]["shape"])
        for name in targets
    ]
