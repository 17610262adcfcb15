"""LiteRT.js in a browser: every encoding on WebAssembly and on WebGPU."""

from absl.testing import absltest

from ai_edge_rms_norm import backends
from ai_edge_rms_norm.backends import Outcome
from tests.backends import models
from tests.web import browser

_SHAPE = (2, 3, 64)


class WebTest(absltest.TestCase):
    def _check(self, accelerator: str) -> None:
        try:
            folder = browser.install()
        except (OSError, RuntimeError) as error:
            self.skipTest(str(error))
        x = models.random_input(_SHAPE)
        names = [(e, w) for e in backends.ENCODINGS for w in (True, False)]
        cases = [
            browser.Case(models.norm(e, _SHAPE, weight=w), accelerator, x)
            for e, w in names
        ]
        results = browser.run(folder, cases)
        for (encoding, weight), result in zip(names, results, strict=True):
            runtime = f"litert_js_{accelerator}"
            outcome = backends.support(encoding, weight, runtime).outcome
            with self.subTest(encoding=encoding, weight=weight, outcome=outcome):
                self._check_result(result, outcome, models.reference(x, weight))

    def _check_result(self, result, outcome, expected):
        if outcome in (Outcome.UNSUPPORTED, Outcome.CRASH):
            self.assertIsNotNone(result.error)
            ended = "exit(1)" in result.error
            self.assertEqual(ended, outcome == Outcome.CRASH, result.error)
            return
        self.assertIsNone(result.error)
        error = models.relative_error(result.output, expected)
        if outcome == Outcome.WRONG:
            self.assertGreater(error, 0.1)
        else:
            self.assertLess(error, 1e-6)

    def test_wasm(self):
        self._check("wasm")

    def test_webgpu(self):
        self._check("webgpu")


if __name__ == "__main__":
    absltest.main()
