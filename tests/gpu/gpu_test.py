"""LiteRT's GPU accelerator: every encoding, and the outlier that zeroes plain norms."""

import functools
import signal

import numpy as np
from absl.testing import absltest, parameterized
from ai_edge_litert import interpreter as litert

import ai_edge_rms_norm as arn
from ai_edge_rms_norm import backends
from ai_edge_rms_norm.backends import Outcome
from ai_edge_rms_norm.runtime.gpu import GpuOutcome
from tests.backends import encoder, models
from tests.gpu import gpu

_SHAPES = ((4, 64), (2, 3, 64), (1, 2, 3, 64))
# From rows whose mean square is far below epsilon to those at the end of float16.
_SCALES = (1e-5, 1.0, 30.0, 300.0, 15000.0)
# Of the largest output; the unit of float16 is 4.9e-4.
_FLOAT16_ERROR = 2e-3
_FLOAT32_ERROR = 1e-6
_REASON = gpu.unavailable()


class _GpuTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        if _REASON:
            self.skipTest(_REASON)


class EncodingsTest(_GpuTest):
    @parameterized.product(
        encoding=backends.ENCODINGS,
        shape=_SHAPES,
        weight=(True, False),
        float32=(False, True),
    )
    def test_encoding(self, encoding, shape, weight, float32):
        content = models.norm(encoding, shape, weight=weight)
        inputs = [models.random_input(shape, scale) for scale in _SCALES]
        run = gpu.run(content, inputs, enforce_float32=float32)
        runtime = "litert_gpu_float32" if float32 else "litert_gpu"
        expected = backends.support(encoding, weight, runtime).outcome
        if expected == Outcome.CRASH:
            # When this fails, the wheel has been mended: change the table.
            self.assertEqual(run.crash, signal.SIGSEGV)
            return
        if expected == Outcome.UNSUPPORTED:
            self.assertEqual(run.outcome, GpuOutcome.FAILED)
            return
        self.assertEqual(run.outcome, GpuOutcome.OK, run.message)
        self.assertTrue(run.fully_accelerated)
        limit = _FLOAT32_ERROR if float32 else _FLOAT16_ERROR
        for scale, x, outputs in zip(_SCALES, inputs, run.outputs, strict=True):
            y = outputs[gpu.OUTPUT]
            error = models.relative_error(y, models.reference(x, weight))
            if expected == Outcome.SILENT_ZEROS and scale >= 300:
                self.assertEqual(np.count_nonzero(y), 0, scale)
            elif expected == Outcome.SILENT_ZEROS and scale < 1e-3:
                self.assertGreater(error, limit, scale)
            else:
                self.assertLess(error, limit, scale)

    @parameterized.parameters("ml_drift", "decomposed")
    def test_epsilon_is_the_model_s(self, encoding):
        shape = (4, 64)
        x = models.random_input(shape)
        run = gpu.run(models.norm(encoding, shape, epsilon=0.5), [x])
        y = run.outputs[0][gpu.OUTPUT]
        expected = models.reference(x, epsilon=0.5)
        self.assertLess(models.relative_error(y, expected), _FLOAT16_ERROR)


class EncoderTest(_GpuTest):
    """An encoder with one outlier channel, as google-ai-edge/LiteRT#7693."""

    SCALES = (1.0, 30.0, 100.0, 300.0, 1000.0)

    @classmethod
    @functools.cache
    def _plain(cls) -> tuple[encoder.Encoder, bytes]:
        module = encoder.Encoder().eval()
        return module, encoder.convert(module)

    def _cosines(self, content: bytes) -> list[float]:
        module, _ = self._plain()
        inputs = [encoder.inputs(scale) for scale in self.SCALES]
        run = gpu.run(content, inputs)
        self.assertEqual(run.outcome, GpuOutcome.OK, run.message)
        self.assertTrue(run.fully_accelerated)
        return [
            encoder.cosine(y[gpu.OUTPUT], encoder.reference(module, x))
            for x, y in zip(inputs, run.outputs, strict=True)
        ]

    @parameterized.parameters("decomposed", "ml_drift")
    def test_fuse_cures_it(self, encoding):
        _, plain = self._plain()
        model, report = arn.fuse(plain, encoding=encoding)
        self.assertLen(report.fused, encoder.NORMS)
        for scale, cosine in zip(self.SCALES, self._cosines(bytes(model)), strict=True):
            self.assertGreaterEqual(cosine, 0.999, scale)

    def test_without_it_the_outlier_overflows(self):
        first, *others = self._cosines(self._plain()[1])
        self.assertGreaterEqual(first, 0.999)
        for cosine in others:
            # Zeros become NaN in the attention.
            self.assertFalse(cosine >= 0.9, others)


class CheckTest(_GpuTest):
    """What `check` says of a norm with an outlier."""

    SHAPE = (4, 64)

    def _check(self, encoding: str) -> arn.CheckReport:
        x = models.random_input(self.SHAPE)
        x[:, 5] = 1000.0
        content = models.norm(encoding, self.SHAPE)
        (name,) = litert.Interpreter(model_content=content).get_input_details()
        with gpu.visible():
            return arn.check(content, {name["name"]: x}, gpu=True)

    def test_plain_is_a_finding(self):
        report = self._check(models.PLAIN)
        float16, float32 = report.gpu
        self.assertEqual(report.gpu_findings, (float16,))
        self.assertIn("has the cosine 0.0000 with that of the CPU", float16.finding)
        self.assertTrue(float32.differences[0].close)
        self.assertIn("fuse model OUTPUT --to decomposed", report.cure)

    @parameterized.parameters("decomposed", "ml_drift")
    def test_range_safe_is_none(self, encoding):
        report = self._check(encoding)
        self.assertEqual(report.gpu_findings, ())
        for result in report.gpu:
            self.assertEqual(result.outcome, GpuOutcome.OK, result.message)
            self.assertTrue(result.fully_accelerated)
            self.assertTrue(result.differences[0].close)

    def test_a_crash_is_a_finding(self):
        # When this fails, the wheel has been mended: change the table.
        report = self._check("composite")
        self.assertIn("crashes: SIGSEGV", report.gpu_findings[0].finding)
        self.assertIn("fuse model OUTPUT --to decomposed", report.cure)


if __name__ == "__main__":
    absltest.main()
