"""Runs a .tflite on LiteRT's GPU accelerator, in a process of its own.

    run_model.py MODEL INPUTS.npz OUTPUTS.npz [--enforce-float32]

The inputs arr_0, arr_1, ... each hold the first input of one run; the outputs with the
same names hold its first output. The accelerator may end the process.
"""

import sys

import numpy as np
from ai_edge_litert.compiled_model import (
    CompiledModel,
    GpuOptions,
    HardwareAccelerator,
    Options,
)


def main() -> None:
    model_path, inputs_path, outputs_path, *flags = sys.argv[1:]
    model = CompiledModel.from_file(
        model_path,
        options=Options(
            hardware_accelerators=HardwareAccelerator.GPU,
            gpu_options=GpuOptions(enforce_f32="--enforce-float32" in flags),
        ),
    )
    signature = model.get_signature_list()
    key = next(iter(signature))
    (details,) = model.get_output_tensor_details(key).values()
    outputs = {}
    with np.load(inputs_path) as inputs:
        for name, value in inputs.items():
            source, target = (
                model.create_input_buffers(0),
                model.create_output_buffers(0),
            )
            source[0].write(value)
            model.run_by_index(0, source, target)
            y = target[0].read(int(np.prod(details["shape"])), np.float32)
            outputs[name] = y.reshape(details["shape"])
    np.savez(outputs_path, **outputs)
    print(f"fully_accelerated={model.is_fully_accelerated()}")


if __name__ == "__main__":
    main()
