"""LiteRT's GPU accelerator: every encoding, and the outlier that zeroes plain norms."""

import functools
import signal

import numpy as np
from absl.testing import absltest, parameterized

import ai_edge_rms_norm as arn
from ai_edge_rms_norm import backends
from ai_edge_rms_norm.backends import Outcome
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
        self.assertIsNone(run.crash)
        if expected == Outcome.UNSUPPORTED:
            self.assertIsNotNone(run.error)
            return
        self.assertIsNone(run.error)
        self.assertTrue(run.fully_accelerated)
        limit = _FLOAT32_ERROR if float32 else _FLOAT16_ERROR
        for scale, x, y in zip(_SCALES, inputs, run.outputs, strict=True):
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
        (y,) = run.outputs
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
        self.assertIsNone(run.error)
        self.assertTrue(run.fully_accelerated)
        return [
            encoder.cosine(y, encoder.reference(module, x))
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


if __name__ == "__main__":
    absltest.main()
