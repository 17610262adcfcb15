"""OpenVINO: which encodings become its RMS operator, and the numbers."""

import copy
import dataclasses
import json
import pathlib
import subprocess
import tempfile

import numpy as np
import torch
from absl.testing import absltest, parameterized

import ai_edge_rms_norm as arn
from ai_edge_rms_norm import backends
from ai_edge_rms_norm.backends import Outcome
from testing import transformer
from tests.backends import environment, models

_WORKER = pathlib.Path(__file__).with_name("run_model.py")
_SHAPES = ((4, 64), (2, 3, 64), (1, 2, 3, 64))


@dataclasses.dataclass(frozen=True)
class Run:
    """Outputs and the compiled graph's operators, or what went to stderr."""

    outputs: list[np.ndarray]
    operators: list[str]
    error: str = ""


def run(content: bytes, *inputs: np.ndarray) -> Run:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "model.tflite").write_bytes(content)
        np.savez(folder / "inputs.npz", *inputs)
        process = subprocess.run(
            [environment.python(), _WORKER, folder / "model.tflite"]
            + [folder / "inputs.npz", folder / "outputs.npz"],
            capture_output=True,
            text=True,
        )
        if process.returncode:
            return Run([], [], process.stderr)
        with np.load(folder / "outputs.npz") as outputs:
            values = [outputs[f"arr_{i}"] for i in range(len(outputs))]
        return Run(values, json.loads(process.stdout.splitlines()[-1]))


class OpenVinoTest(parameterized.TestCase):
    @parameterized.product(
        encoding=backends.ENCODINGS, shape=_SHAPES, weight=(True, False)
    )
    def test_encoding(self, encoding, shape, weight):
        x = models.random_input(shape, 0.1)
        result = run(models.norm(encoding, shape, weight=weight), x)
        support = backends.support(encoding, weight, "openvino")
        if support.outcome == Outcome.UNSUPPORTED:
            is_composite = encoding == "composite"
            reason = "expects 2 inputs" if is_composite else "No translator found"
            self.assertIn(reason, result.error)
            return
        self.assertEqual(result.error, "")
        y, expected = result.outputs[0], models.reference(x, weight)
        self.assertLess(models.relative_error(y, expected), 1e-6)
        fused = support.outcome == Outcome.FUSED
        self.assertEqual(result.operators.count("RMS"), 1 if fused else 0)

    def test_add_rms_norm_is_an_addition_and_its_operator(self):
        class Block(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, 64))

            def forward(self, x, residual):
                return arn.add_rms_norm(x, residual, self.weight, 1e-6)

        x, residual = models.random_input((4, 64)), models.random_input((4, 64), 2.0)
        inputs = (torch.from_numpy(x), torch.from_numpy(residual))
        content = bytes(arn.convert(Block(), inputs, encoding="composite"))
        result = run(content, x, residual)
        self.assertEqual(result.error, "")
        self.assertEqual(result.operators.count("RMS"), 1)
        expected = models.reference(x.astype(np.float64) + residual)
        error = min(
            models.relative_error(y, expected)
            for y in result.outputs
            if y.shape == expected.shape
        )
        self.assertLess(error, 1e-6)

    def test_decoder_layer_of_the_demo(self):
        layer = transformer.DecoderLayer(
            arn.RMSNorm, 64, 96, num_heads=4, num_kv_heads=2, head_size=16
        )
        layer = transformer.randomize(layer).eval()
        x = models.random_input((1, 8, 64))
        with torch.no_grad():
            expected = copy.deepcopy(layer).double()(torch.from_numpy(x).double())
        inputs = (torch.from_numpy(x),)
        content = bytes(arn.convert(layer, inputs, encoding="composite"))
        composites = len(arn.Model(content).rms_norm_ops())
        result = run(content, x)
        self.assertEqual(result.error, "")
        self.assertEqual(result.operators.count("RMS"), composites)
        self.assertLess(
            models.relative_error(result.outputs[0], expected.numpy()), 1e-5
        )


if __name__ == "__main__":
    absltest.main()
