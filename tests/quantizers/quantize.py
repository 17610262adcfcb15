"""Quantizes a .tflite with one of the quantizers, in its environment.

    quantize.py PACKAGE RECIPE MODEL RESULT [INPUTS.npz]

PACKAGE is ai_edge_quantizer or litert_quantizer, RECIPE a function of its recipes;
INPUTS arr_0, ... are what a static recipe is calibrated with.
"""

import importlib
import pathlib
import sys

import numpy as np


def main() -> None:
    package, recipe, model, result, *inputs = sys.argv[1:]
    quantizer = importlib.import_module(f"{package}.quantizer").Quantizer(model)
    recipes = importlib.import_module(f"{package}.recipe")
    quantizer.load_quantization_recipe(getattr(recipes, recipe)())
    calibration = None
    if quantizer.need_calibration:
        with np.load(inputs[0]) as values:
            samples = [{"x": value} for value in values.values()]
        calibration = quantizer.calibrate({"serving_default": samples})
    content = quantizer.quantize(calibration).quantized_model
    pathlib.Path(result).write_bytes(bytes(content))


if __name__ == "__main__":
    main()
