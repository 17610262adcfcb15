"""Runs in the ARM64 root file system: every .tflite of a folder on its inputs.

run_models.py FOLDER

NAME.tflite runs on NAME.inputs.npz and leaves NAME.outputs.npz. Prints the machine and
the kernel variant.
"""

import pathlib
import platform
import sys

import numpy as np

import ai_edge_rms_norm as arn

for model in pathlib.Path(sys.argv[1]).glob("*.tflite"):
    interpreter = arn.Interpreter(model_path=model, num_threads=2)
    with np.load(model.with_suffix(".inputs.npz")) as inputs:
        outputs = interpreter.get_signature_runner()(**inputs)
    np.savez(model.with_suffix(".outputs.npz"), **outputs)
print(platform.machine(), arn.kernel_variant())
