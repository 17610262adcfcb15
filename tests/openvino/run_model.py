"""Runs a .tflite on OpenVINO's CPU device, in OpenVINO's environment.

    run_model.py MODEL INPUTS.npz OUTPUTS.npz

Inputs arr_0, arr_1, ... in the model's order; outputs likewise. Prints the types of the
compiled graph's operators as JSON.
"""

import json
import sys

import numpy as np
import openvino


def main() -> None:
    model_path, inputs_path, outputs_path = sys.argv[1:]
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model_path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    with np.load(inputs_path) as inputs:
        values = [inputs[f"arr_{i}"] for i in range(len(inputs))]
    outputs = compiled(values)
    np.savez(outputs_path, *(outputs[port] for port in compiled.outputs))
    operators = compiled.get_runtime_model().get_ops()
    print(
        json.dumps([str(o.get_rt_info()["layerType"].astype(str)) for o in operators])
    )


if __name__ == "__main__":
    main()
