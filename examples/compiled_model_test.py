"""The example in C: the delegate registered with CompiledModel, on the wheel of pip."""

import pathlib
import re
import subprocess

import ai_edge_litert
import numpy as np
from absl.testing import absltest, parameterized

import ai_edge_rms_norm as arn
from tests.backends import models

_EXAMPLE = pathlib.Path(__file__).with_name("compiled_model")
_LITERT = pathlib.Path(ai_edge_litert.__file__).with_name("libLiteRt.so")


class CompiledModelTest(parameterized.TestCase):
    @parameterized.parameters("custom", "ml_drift")
    def test_norm_of_ones(self, encoding):
        model = pathlib.Path(self.create_tempdir(), "model.tflite")
        model.write_bytes(models.norm(encoding, (4, 64), epsilon=0.25))
        process = subprocess.run(
            [_EXAMPLE, _LITERT, arn.delegate_path(), model],
            capture_output=True,
            text=True,
        )
        self.assertEqual(process.returncode, 0, process.stderr)
        match = re.search(r"fully_accelerated=1 y\[0\]=(\S+)", process.stdout)
        expected = models.reference(np.ones((4, 64)), epsilon=0.25)[0, 0]
        self.assertAlmostEqual(float(match[1]), expected, places=6)

    def test_an_encoding_that_no_runtime_has(self):
        model = pathlib.Path(self.create_tempdir(), "model.tflite")
        model.write_bytes(models.norm("stablehlo_custom_call", (4, 64)))
        process = subprocess.run(
            [_EXAMPLE, _LITERT, arn.delegate_path(), model],
            capture_output=True,
            text=True,
        )
        self.assertEqual(process.returncode, 1)
        self.assertIn("LiteRtCreateCompiledModel failed", process.stderr)


if __name__ == "__main__":
    absltest.main()
