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
from ai_edge_rms_norm.tflite import bundle as bundle_lib
from ai_edge_rms_norm.tflite import inspection
from tests.backends import environment
from tests.cli import command
from tests.gpu import gpu
from tests.litert_lm import bundle

_WORKER = pathlib.Path(__file__).with_name("score.py")
_CPU_TOLERANCE = 1e-4


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

    def _score(self, path: pathlib.Path, device: str) -> np.ndarray | None:
        """Returns the scores, or None if LiteRT-LM raises an exception."""
        with tempfile.TemporaryDirectory() as name:
            process = subprocess.run(
                [environment.python(), _WORKER, path, device]
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
            scores = self._score(self._bundles()[encoding], device)
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
        self._check("cpu", _CPU_TOLERANCE)

    @parameterized.parameters("litertlm", "task")
    def test_bundles_rewritten_by_the_command(self, kind):
        path = self._bundles()[backends.PLAIN]
        if kind == "task":
            path = bundle.as_task(path)
        expected = self._score(path, "cpu")
        self.assertGreater(len(expected), 2)
        folder = pathlib.Path(self.create_tempdir().full_path)
        for encoding in ("composite", "decomposed"):
            fused = folder / f"{encoding}.{kind}"
            code, _, errors = command.run("fuse", path, fused, "--to", encoding)
            self.assertEqual((code, errors), (0, ""))
            norms = inspection.inspect(fused).norms
            self.assertEqual({norm.encoding for norm in norms}, {encoding})
            np.testing.assert_allclose(
                self._score(fused, "cpu"), expected, atol=_CPU_TOLERANCE
            )
        # The scores are those of the file: with another epsilon they are others.
        source = bundle_lib.read_bundle(path)
        (model,) = source.models
        epsilons = [np.float32(value).tobytes() for value in (1e-6, 0.3)]
        source.write(fused, {model.name: bytes(model.content).replace(*epsilons)})
        difference = np.abs(self._score(fused, "cpu") - expected).max()
        self.assertGreater(difference, 100 * _CPU_TOLERANCE)

    def test_gpu(self):
        reason = gpu.unavailable()
        if reason:
            self.skipTest(reason)
        results = self._check("gpu", 5e-3)
        # The same kernel runs both.
        np.testing.assert_array_equal(results["composite"], results["ml_drift"])


if __name__ == "__main__":
    absltest.main()
