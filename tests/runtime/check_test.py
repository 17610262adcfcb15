"""What `check` says of norms, against numbers by hand."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import unittest
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.runtime import check as check_lib
from ai_edge_rms_norm.runtime import gpu
from ai_edge_rms_norm.tflite import edit, flatbuffer
from testing import tflite_builder
from tests import pattern_cases

_SIZE = 64
_ROWS = 3
_WEIGHT = np.linspace(0.5, 2, _SIZE).astype(np.float32)
_EPSILON = 1e-6


def plain_norms() -> bytes:
    """Two norms as converters write them, the second of 100 times the first."""
    builder = tflite_builder.Builder()
    x = builder.input([_ROWS, _SIZE])
    for scale in (None, 100.0):
        if scale is not None:
            x = builder("MUL", x, builder.constant(scale))
        mean = builder.reduce("MEAN", builder("MUL", x, x))
        root = builder("RSQRT", builder("ADD", mean, builder.constant(_EPSILON)))
        x = builder("MUL", builder("MUL", x, root), builder.constant(_WEIGHT))
    builder.serve({"args_0": 0}, {"output_0": x})
    return builder.content(x)


def outlier() -> np.ndarray:
    """x whose channel 5 is far above the others, 100 at most."""
    x = np.random.default_rng(0).standard_normal((_ROWS, _SIZE))
    x[:, 5] = (20.0, -100.0, 50.0)
    return x.astype(np.float32)


def rms_norm(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + _EPSILON) * _WEIGHT


class CheckTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.plain = plain_norms()
        self.x = outlier()

    @parameterized.parameters(
        (None, False),
        ("decomposed", True),
        ("custom", True),
        ("stablehlo_custom_call", True),
        ("ml_drift", True),
        ("composite", True),
    )
    def test_numbers_and_findings(self, encoding, is_safe):
        content = self.plain
        if encoding is not None:
            content = bytes(arn.fuse(content, encoding=encoding)[0])
        report = arn.check(content, {"args_0": self.x})
        first = self.x.astype(np.float64)
        second = 100 * rms_norm(first)
        self.assertGreater(np.abs(second).max(), 256)
        for norm, x in zip(report.norms, (first, second), strict=True):
            numbers = norm.statistics
            squares = (x**2).sum(-1)
            for value, expected in (
                (numbers.max_abs, np.abs(x).max()),
                (numbers.max_sum_of_squares, squares.max()),
                (numbers.min_mean_square, squares.min() / _SIZE),
                (numbers.max_result, np.abs(rms_norm(x)).max()),
            ):
                self.assertAlmostEqual(value / expected, 1, delta=1e-5)
            self.assertEqual((numbers.rows, numbers.non_finite), (_ROWS, 0))
            self.assertEqual(norm.is_range_safe, is_safe)
            self.assertEqual(numbers.overflows("bfloat16"), ())
        first, second = report.norms
        self.assertEqual(first.statistics.overflows("float16"), ())
        self.assertEqual(second.statistics.overflows("float16"), ("square", "sum"))
        self.assertEqual(report.findings, () if is_safe else (second,))
        self.assertEqual(bool(report.cure), not is_safe)

    def test_a_composite_with_a_plain_decomposition_overflows(self):
        model, _ = arn.fuse(self.plain, encoding="composite", range_safe=False)
        report = arn.check(model, {"args_0": self.x})
        self.assertLen(report.findings, 1)
        self.assertIn("its square overflows", report.findings[0].finding)

    def test_control_dependencies(self):
        content = bytes(arn.fuse(self.plain, encoding="custom")[0])
        model = flatbuffer.read(content)
        edit.set_metadata(model, "model_control_dependencies", b"\0" * 4)
        report = arn.check(flatbuffer.to_bytes(model), {"args_0": self.x})
        self.assertGreater(report.norms[1].statistics.max_abs, 256)

    def test_what_no_encoding_cures(self):
        safe, _ = arn.fuse(self.plain, encoding="decomposed")
        for value, finding in ((7e4, "x leaves float16"), (np.inf, "1 elements of x")):
            self.x[0, 0] = value
            report = arn.check(safe, {"args_0": self.x})
            self.assertStartsWith(report.findings[0].finding, finding)
            self.assertEqual(report.cure, "")

    def test_inputs(self):
        self.assertEqual(arn.check(self.plain, 2).norms[0].statistics.rows, 2 * _ROWS)
        for inputs, message in (
            ({"x": self.x}, r"the inputs are \['args_0'\], got \['x'\]"),
            ({"args_0": self.x[0]}, r"'args_0' must have the shape \[3, 64\]"),
            ({"args_0": self.x * 1j}, "must be float32, got complex"),
            (0, "at least 1 random run"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                arn.check(self.plain, inputs)
        with self.assertRaisesRegex(ValueError, "no signature 'other'"):
            arn.check(self.plain, signature="other")

    def test_without_signatures(self):
        model = flatbuffer.read(self.plain)
        model.signatureDefs = None
        content = flatbuffer.to_bytes(model)
        self.assertLen(arn.check(content, {"t0": self.x}).findings, 1)

    def test_the_command(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        path, inputs = folder / "plain.tflite", folder / "x.npz"
        path.write_bytes(self.plain)
        np.savez(inputs, args_0=self.x)
        code = f"import sys; sys.path[:] = {sys.path!r}\n"
        code += "from ai_edge_rms_norm.cli.main import main; main()"

        def run(*arguments):
            command = [sys.executable, "-c", code, *map(str, arguments)]
            return subprocess.run(command, capture_output=True, text=True)

        found = run("check", path, "--input", inputs, "--plot", folder / "norms.png")
        self.assertEqual((found.returncode, found.stderr), (1, ""))
        self.assertIn(f"cure: ai-edge-rms-norm fuse {path} OUTPUT", found.stdout)
        self.assertStartsWith((folder / "norms.png").read_bytes(), b"\x89PNG")
        fixed = folder / "fixed.tflite"
        run("fuse", path, fixed, "--to", "decomposed")
        result = run("check", fixed, "--input", inputs, "--json")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        document = json.loads(result.stdout)
        self.assertEqual((document["kind"], document["findings"]), ("check", 0))
        self.assertLen(document["norms"], 2)
        self.assertEmpty(document["gpu"])

    def test_many_inputs_are_counted(self):
        x = {"args_0": self.x}
        self.assertEqual(check_lib._names(x), "args_0")
        self.assertEqual(check_lib._names(dict.fromkeys("abcde")), "5 inputs")
        self.assertEqual(arn.check(self.plain, x).inputs, "args_0")

    def test_many_norms_that_were_not_measured_are_counted(self):
        report = arn.check(self.plain, {"args_0": self.x})
        norm = dataclasses.replace(report.norms[0], statistics=None, reason="it is off")
        for count, shown in ((2, norm.norm.title), (5, "5 norms")):
            many = dataclasses.replace(report, norms=(norm,) * count)
            lines = many.summary().splitlines()
            self.assertIn(f"{shown}: not measured: it is off", lines)

    def test_it_prints(self):
        report = arn.check(self.plain, {"args_0": self.x})
        for text in (str(report), report._repr_html_()):
            self.assertIn("its square overflows in float16", text)
            self.assertIn("2 silent zeros", text)

    def test_a_fusion_report_in_a_notebook(self):
        _, report = arn.fuse(self.plain)
        text = report._repr_html_()
        self.assertIn("2 fused, 0 left alone; 13 operators became 3", text)
        self.assertEqual(text.count("<td>decomposed</td>"), 2)

    def test_control_flow_is_not_measured(self):
        content = flatbuffer.to_bytes(pattern_cases.if_graph().model)
        report = arn.check(content)
        self.assertNotEmpty(report.norms)
        for norm in report.norms:
            self.assertIsNone(norm.statistics)
            self.assertIn("belongs to control flow", norm.reason)


# Stands for the process on the GPU; it is given the folder of the request.
_FAILS = """
import json, pathlib, sys
(pathlib.Path(sys.argv[1]) / "result.json").write_text(json.dumps({"error": "E"}))
"""
_WRITES = """
import json, numpy as np, pathlib, sys
folder = pathlib.Path(sys.argv[1])
runs = json.loads((folder / "request.json").read_text())["runs"]
y = np.load(sys.argv[2])
np.savez(folder / "outputs.npz", **{f"{i}_0": y[i] for i in range(len(runs))})
(folder / "result.json").write_text(json.dumps({"fully_accelerated": True}))
"""


def _stand_in(code: str, *arguments: str) -> mock._patch:
    added = f"import sys; sys.argv += {arguments!r}\n"
    return mock.patch.object(gpu, "_WORKER", added + code)


class GpuTest(parameterized.TestCase):
    """The outcomes on the GPU; //tests/gpu has one."""

    def setUp(self):
        super().setUp()
        self.safe = bytes(arn.fuse(plain_norms(), encoding="decomposed")[0])
        self.x = outlier()

    @unittest.skipUnless(sys.platform == "linux", "it hides the devices of Vulkan")
    def test_there_is_none(self):
        with mock.patch.dict(os.environ, {"VK_ICD_FILENAMES": "/nonexistent"}):
            report = arn.check(self.safe, {"args_0": self.x}, gpu=True)
        self.assertEqual([r.outcome for r in report.gpu], 2 * [gpu.GpuOutcome.NO_GPU])
        self.assertIn("found no device here; nothing was compared", str(report))
        self.assertEqual(report.to_dict()["findings"], 0)

    @parameterized.parameters(
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            gpu.GpuOutcome.CRASHED,
            "SIGSEGV",
        ),
        (
            "import time; time.sleep(60)",
            gpu.GpuOutcome.TIMED_OUT,
            "no result within 1 s",
        ),
        (
            "import sys; sys.exit('ImportError: no GPU options')",
            gpu.GpuOutcome.FAILED,
            "the process ended with exit code 1: ImportError: no GPU options",
        ),
        (
            _FAILS + "sys.stderr.write('I: x\\nERROR: [a.cc:1] the cause\\nERROR: b')",
            gpu.GpuOutcome.FAILED,
            "the cause",
        ),
        (_FAILS, gpu.GpuOutcome.FAILED, "E"),
    )
    def test_outcomes(self, code, outcome, message):
        runs = [gpu.Run(None, {"x": self.x}, {"y": self.x})]
        timeout = 1 if outcome == gpu.GpuOutcome.TIMED_OUT else 60
        with _stand_in(code):
            float16, float32 = gpu.compare_with_cpu("", b"", runs, timeout=timeout)
        for result in (float16, float32):
            self.assertEqual((result.outcome, result.message), (outcome, message))
        self.assertEqual(bool(float16.finding), outcome == gpu.GpuOutcome.CRASHED)
        self.assertEqual(float32.finding, "")

    def test_the_worst_run_counts(self):
        x = np.ones([2, 4], np.float32)
        runs = [gpu.Run(None, {"x": row}, {"y": row}) for row in x]
        right = 1.001 * x
        for value, finding in (
            (1.001, ""),
            (np.nan, "1 elements of y are infinite or NaN, 0 on the CPU"),
            (-1.0, "y has the cosine 0.50"),
        ):
            y = right.copy()
            y[0, 0] = value
            path = self.create_tempfile().full_path + ".npy"
            np.save(path, y)
            with _stand_in(_WRITES, path):
                float16, _ = gpu.compare_with_cpu("", b"", runs)
            self.assertEqual(float16.outcome, gpu.GpuOutcome.OK)
            self.assertStartsWith(float16.finding, finding)
            self.assertEqual(bool(float16.finding), bool(finding))
            self.assertEqual(float16.differences[0].close, not finding)

    def test_reports(self):
        path = self.create_tempfile().full_path + ".npy"
        np.save(path, np.zeros([1, _ROWS, _SIZE], np.float32))
        with _stand_in(_WRITES, path):
            report = arn.check(self.safe, {"args_0": self.x}, gpu=True)
        self.assertEqual(report.findings, ())
        self.assertEqual(report.gpu_findings, report.gpu[:1])
        for text in (str(report), report._repr_html_()):
            self.assertIn("output_0 has the cosine 0.0000", text)
            self.assertIn("max rel error", text)
        document = json.loads(json.dumps(report.to_dict()))
        self.assertEqual(document["findings"], 1)
        self.assertEqual([r["outcome"] for r in document["gpu"]], ["ok", "ok"])
        self.assertEqual(document["gpu"][0]["differences"][0]["cosine"], 0)


if __name__ == "__main__":
    absltest.main()
