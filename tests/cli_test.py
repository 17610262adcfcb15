"""The command line, on a real model."""

import os
import pathlib
import subprocess
import sys

import torch
from absl.testing import absltest

import ai_edge_rms_norm as arn


def run(*arguments) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "ai_edge_rms_norm.cli", *map(str, arguments)],
        capture_output=True,
        env={**environment, "COLUMNS": "160"},
        text=True,
    )


class CliTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.path = self.folder / "norm.tflite"
        module = arn.RMSNorm(64, eps=1e-5).eval()
        arn.convert(module, (torch.ones(3, 64),)).export(self.path)

    def test_inspect(self):
        result = run("inspect", self.path)
        self.assertEqual(result.returncode, 0, result.stderr)
        for text in ("stablehlo_custom_call", "rms_norm", "1e-05", "3x64"):
            self.assertIn(text, result.stdout)

    def test_translate(self):
        output = self.folder / "custom.tflite"
        result = run("translate", self.path, output, "--encoding", "custom")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("1 operators translated to custom", result.stdout)
        (node,) = arn.Model.load(output).nodes()
        self.assertEqual((node.encoding.value, node.epsilon), ("custom", 1e-5))

    def test_fuse(self):
        source, output = self.folder / "plain.tflite", self.folder / "fused.tflite"
        module = torch.nn.RMSNorm(64, eps=1e-5).eval()
        arn.convert(module, (torch.ones(3, 64),)).export(source)
        result = run("fuse", source, output, "--encoding", "stablehlo_custom_call")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r"1 norms fused, \d operators became 1")
        (node,) = arn.Model.load(output).nodes()
        self.assertEqual(
            (node.encoding.value, node.epsilon), ("stablehlo_custom_call", 1e-5)
        )

    def test_benchmark(self):
        result = run("benchmark", self.path, "--threads", 2, "--seconds", 0.01)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r"serving_default: median \d+\.\d µs")

    def test_errors_are_one_line(self):
        damaged = self.folder / "damaged.tflite"
        damaged.write_bytes(b"no model")
        for arguments, message in (
            (("inspect", self.folder / "missing.tflite"), "missing.tflite"),
            (("inspect", damaged), "is no .tflite"),
            (("translate", damaged, self.folder / "out.tflite"), "is no .tflite"),
            (("fuse", damaged, self.folder / "out.tflite"), "is no .tflite"),
            (("benchmark", damaged), "is no .tflite"),
        ):
            result = run(*arguments)
            self.assertEqual(result.returncode, 1)
            self.assertStartsWith(result.stderr.splitlines()[-1], "error: ")
            self.assertIn(message, result.stderr)
            self.assertNotIn("Traceback", result.stderr)
        self.assertFalse((self.folder / "out.tflite").exists())


if __name__ == "__main__":
    absltest.main()
