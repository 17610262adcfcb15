"""LiteRT-LM: a tiny Qwen3 with norms in every encoding, on the CPU and on the GPU."""

import functools
import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

import ai_edge_rms_norm as arn
from ai_edge_rms_norm import backends
from tests.backends import environment
from tests.gpu import gpu
from tests.litert_lm import bundle

_WORKER = pathlib.Path(__file__).with_name("score.py")


class LiteRtLmTest(parameterized.TestCase):
    @classmethod
    @functools.cache
    def _bundles(cls) -> dict[str, pathlib.Path]:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        path = pathlib.Path(folder.name)
        plain, norms = bundle.model()
        bundles = {backends.PLAIN: bundle.build(path, backends.PLAIN, plain)}
        for encoding in backends.ENCODINGS:
            if encoding != backends.PLAIN:
                model, report = arn.fuse(plain, encoding=encoding)
                assert len(report.fused) == norms, report
                bundles[encoding] = bundle.build(path, encoding, bytes(model))
        return bundles

    def setUp(self):
        super().setUp()
        environment.python()  # Nothing is converted where it is skipped.
        self._bundles()

    def _score(self, encoding: str, device: str) -> np.ndarray | None:
        """Returns the scores, or None if LiteRT-LM raises an exception."""
        with tempfile.TemporaryDirectory() as name:
            process = subprocess.run(
                [environment.python(), _WORKER, self._bundles()[encoding], device]
                + ["abc de", "fgh ij klm"],
                env={**os.environ, **gpu.environment(name)},
                capture_output=True,
                text=True,
            )
        if process.returncode == 1:
            self.assertIn("RuntimeError", process.stderr)
            return None
        self.assertEqual(process.returncode, 0, process.stderr)
        return np.array(json.loads(process.stdout.splitlines()[-1]))

    def _check(self, device: str, tolerance: float) -> dict[str, np.ndarray]:
        results = {}
        for encoding in backends.ENCODINGS:
            outcome = backends.support(encoding, True, f"litert_lm_{device}").outcome
            scores = self._score(encoding, device)
            with self.subTest(encoding=encoding, outcome=outcome):
                self.assertEqual(scores is not None, outcome.is_right)
            if scores is not None:
                self.assertGreater(len(scores), 2)
                results[encoding] = scores
        for encoding, scores in results.items():
            with self.subTest(encoding=encoding):
                np.testing.assert_allclose(scores, results["plain"], atol=tolerance)
        return results

    def test_cpu(self):
        self._check("cpu", 1e-4)

    def test_gpu(self):
        reason = gpu.unavailable()
        if reason:
            self.skipTest(reason)
        results = self._check("gpu", 5e-3)
        # The same kernel runs both.
        np.testing.assert_array_equal(results["composite"], results["ml_drift"])


if __name__ == "__main__":
    absltest.main()
