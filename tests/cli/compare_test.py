"""The commands compare and run, and Model.compare."""

import json
import pathlib
import subprocess
import sys

import numpy as np
from absl.testing import absltest

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.runtime import compare
from testing import tflite_builder

_FACTORY = """
import torch
def make():
    return torch.nn.RMSNorm(64, {eps}).eval(), torch.ones(3, 64)
"""


def norm_model(epsilon: float) -> arn.Model:
    """A norm of x [3, 64] in the encoding custom."""
    builder = tflite_builder.Builder()
    x = builder.input([3, 64])
    mean = builder.reduce("MEAN", builder("MUL", x, x))
    root = builder("RSQRT", builder("ADD", mean, builder.constant(epsilon)))
    y = builder("MUL", x, root)
    builder.serve({"args_0": x}, {"output_0": y})
    return arn.fuse(builder.content(y))[0]


class CompareTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.path = self.folder / "norm.tflite"
        self.model = norm_model(1e-5)
        self.model.export(self.path)

    def run_command(self, *arguments) -> subprocess.CompletedProcess:
        code = f"import sys; sys.path[:] = {sys.path!r}\n"
        code += "from ai_edge_rms_norm.cli.main import main; main()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    def test_numbers(self):
        a = np.array([1.0, -2.0, np.inf, 4.0])
        b = np.array([1.0, -2.5, np.inf, np.nan])
        result = compare.compare_outputs({"y": a}, {"y": b}, rtol=1, atol=0)
        (y,) = result.outputs
        self.assertEqual((y.max_abs_error, y.max_rel_error), (0.5, 0.2))
        self.assertAlmostEqual(y.cosine, 6 / np.sqrt(5 * 7.25))
        self.assertEqual((y.non_finite, y.other_non_finite), (1, 2))
        self.assertFalse(result.close)  # 4 became NaN.
        for rtol, close in ((0.19, False), (0.21, True)):
            result = compare.compare_outputs(
                {"y": a[:3]}, {"y": b[:3]}, rtol=rtol, atol=0
            )
            self.assertEqual(result.close, close)
        with self.assertRaisesRegex(ValueError, "has the shape"):
            compare.compare_outputs({"y": a}, {"y": b[:3]}, rtol=1, atol=0)

    def test_model(self):
        x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
        other = self.model.translate("decomposed")
        self.assertTrue(self.model.compare(other, {"args_0": x}).close)
        wrong = norm_model(0.5)
        self.assertFalse(self.model.compare(wrong, {"args_0": x}).close)
        self.assertIn(
            "custom, hidden size 64, epsilon 1e-05", other.translate("custom").summary()
        )

    def test_command(self):
        self.model.translate("decomposed").export(self.folder / "other.tflite")
        result = self.run_command("compare", self.path, self.folder / "other.tflite")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("all 1 outputs are close", result.stdout)
        for eps, code in ((1e-5, 0), (0.5, 1)):
            source = self.folder / "model.py"
            source.write_text(_FACTORY.format(eps=eps))
            result = self.run_command(
                "compare", self.path, "--torch", f"{source}:make", "--json"
            )
            self.assertEqual((result.returncode, result.stderr), (code, ""))
            document = json.loads(result.stdout)
            self.assertEqual(document["close"], not code)
            self.assertEqual(document["times"]["b"]["ratio"], 1)

    def test_run(self):
        x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
        np.save(self.folder / "x.npy", x)
        saved = self.folder / "y.npz"
        result = self.run_command(
            "run", self.path, "--input", self.folder / "x.npy", "--save", saved
        )
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn(f"1 outputs; {saved} written", result.stdout)
        np.testing.assert_array_equal(np.load(saved)["output_0"], self.model(x))
        np.save(self.folder / "x.npy", x[:2])
        result = self.run_command("run", self.path, "--input", self.folder / "x.npy")
        self.assertEqual(result.returncode, 2)
        self.assertIn("must have the shape [3, 64], got [2, 64]", result.stderr)


if __name__ == "__main__":
    absltest.main()
