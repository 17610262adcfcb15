"""The command `benchmark`, on a real model."""

import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

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
        header, row = (line.split("\t") for line in result.stdout.splitlines()[:2])
        self.assertLen(row, len(header))
        self.assertEqual(row[:2], ["serving_default", f"{self.path}, 2 threads"])
        self.assertGreater(float(row[2]), 0)

    def test_several_models_without_signatures(self):
        model = flatbuffer.load(self.path)
        model.signatureDefs = None
        paths = [self.folder / "a.tflite", self.folder / "b.tflite"]
        for path in paths:
            flatbuffer.write_file(path, model)
        arguments = ("--threads", "1,2", "--seconds", 0.01, "--json", "--decomposed")
        result = run("benchmark", *paths, *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        times = json.loads(result.stdout)["seconds_per_call"]["subgraph 0"]
        self.assertLen(times, 4)
        self.assertEqual(times[f"{paths[0]}, 1 thread"]["ratio"], 1)
        for timing in times.values():
            self.assertBetween(timing["median"], timing["low"], timing["high"])

    def test_profile_and_picture(self):
        picture = self.folder / "times.png"
        options = ("--profile", "--seconds", 0.01, "--png", picture)
        result = run("benchmark", self.path, *options)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        times, profile = (part.splitlines() for part in result.stdout.split("\n\n"))
        self.assertLen(times, 2)
        kinds = [line.split("\t")[2] for line in profile[1:-1]]
        self.assertIn("norm: 1 x AiEdgeRmsNorm", kinds)
        self.assertEqual(kinds[-3:], ["all norms", "everything else", "the call"])
        self.assertStartsWith(picture.read_bytes(), b"\x89PNG")
        result = run("benchmark", self.path, "--json", *options)
        document = json.loads(result.stdout)["profile"]["serving_default"]
        (profile,) = document.values()
        self.assertEqual(profile["kinds"][0]["count"], 1)
        self.assertEqual(profile["norms_by"], "profiler")

    def test_a_picture_without_matplotlib(self):
        (self.folder / "matplotlib.py").write_text("raise ImportError")
        with mock.patch.object(sys, "path", [str(self.folder), *sys.path]):
            result = run("benchmark", self.path, "--png", self.folder / "times.png")
        self.assertEqual(result.returncode, 2)
        self.assertLen(result.stderr.splitlines(), 1)
        self.assertIn("pip install 'ai-edge-rms-norm[plot]'", result.stderr)

    def test_benchmark_of_tokens(self):
        path = self.folder / "embedding.tflite"
        arn.convert(Embedding().eval(), (torch.zeros(1, 9).int(),)).export(path)
        result = run("benchmark", path, "--seconds", 0.01)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_errors_are_one_line(self):
        short = self.folder / "short.tflite"
        short.write_bytes(self.path.read_bytes()[:400])
        for arguments, message in (
            (("benchmark", short), "short.tflite: a damaged .tflite"),
            (("benchmark", self.path, short), "short.tflite"),
            (("benchmark", self.path, "--threads", "1,x"), "numbers from 1 on"),
        ):
            result = run(*arguments)
            self.assertEqual(result.returncode, 2)
            self.assertStartsWith(result.stderr.splitlines()[-1], "error: ")
            self.assertIn(message, result.stderr)
            self.assertNotIn("Traceback", result.stderr)


if __name__ == "__main__":
    absltest.main()
