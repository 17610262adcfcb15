"""The command `benchmark`, on a real model."""

import os
import pathlib
import subprocess
import sys

import torch
from absl.testing import absltest

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.tflite import flatbuffer


class Embedding(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.norm = torch.nn.Embedding(10, 64), arn.RMSNorm(64)

    def forward(self, tokens):
        return self.norm(self.table(tokens))


def run(*arguments, columns=160) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "ai_edge_rms_norm.cli", *map(str, arguments)],
        capture_output=True,
        env={**environment, "COLUMNS": str(columns)},
        text=True,
    )


class CliTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.path = self.folder / "norm.tflite"
        module = arn.RMSNorm(64, eps=1e-5).eval()
        arn.convert(module, (torch.ones(3, 64),)).export(self.path)

    def test_benchmark(self):
        result = run("benchmark", self.path, "--threads", 2, "--seconds", 0.01)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r"serving_default: median \d+\.\d µs")

    def test_benchmark_of_tokens(self):
        path = self.folder / "embedding.tflite"
        arn.convert(Embedding().eval(), (torch.zeros(1, 9).int(),)).export(path)
        result = run("benchmark", path, "--seconds", 0.01)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_errors_are_one_line(self):
        short = self.folder / "short.tflite"
        short.write_bytes(self.path.read_bytes()[:400])
        nameless = self.folder / "nameless.tflite"
        model = flatbuffer.load(self.path)
        model.signatureDefs = None
        flatbuffer.write_file(nameless, model)
        for arguments, message in (
            (("benchmark", short), "short.tflite: a damaged .tflite"),
            (("benchmark", nameless), "nameless.tflite: has no signature"),
        ):
            result = run(*arguments)
            self.assertEqual(result.returncode, 2)
            self.assertStartsWith(result.stderr.splitlines()[-1], "error: ")
            self.assertIn(message, result.stderr)
            self.assertNotIn("Traceback", result.stderr)


if __name__ == "__main__":
    absltest.main()
