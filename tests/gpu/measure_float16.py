"""Measures the error of norms on the GPU of the tests over the magnitude of x, as JSON.

    PYTHONPATH=python:. python tests/gpu/measure_float16.py docs/data/float16.json

benchmarks/float16_figure.py draws docs/data/float16.png from it.
"""

import json
import pathlib
import sys

import numpy as np

from tests.backends import models
from tests.gpu import gpu

_SHAPE = (16, 768)
_ENCODINGS = (models.PLAIN, "decomposed", "ml_drift")
_MAGNITUDES = np.geomspace(1e-5, 6e4, 60)


def _inputs() -> list[np.ndarray]:
    x = models.random_input(_SHAPE)
    x /= np.abs(x).max()
    return [(m * x).astype(np.float32) for m in _MAGNITUDES]


def main() -> None:
    reason = gpu.unavailable()
    if reason:
        sys.exit(reason)
    inputs = _inputs()
    errors = {}
    for encoding in _ENCODINGS:
        run = gpu.run(models.norm(encoding, _SHAPE), inputs)
        errors[encoding] = [
            models.relative_error(y[gpu.OUTPUT], models.reference(x))
            for x, y in zip(inputs, run.outputs, strict=True)
        ]
    result = {"max_abs_x": _MAGNITUDES.tolist(), "errors": errors}
    pathlib.Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
