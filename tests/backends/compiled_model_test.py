"""The kernels inside LiteRT's CompiledModel, on the wheel of pip."""

import gc
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from ai_edge_litert.compiled_model import CompiledModel

import ai_edge_rms_norm as arn
from ai_edge_rms_norm import backends
from ai_edge_rms_norm.backends import Outcome
from testing.tflite_builder import Builder
from tests.backends import models

_SHAPE = (2, 3, 64)


class CompiledModelTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self._path = str(pathlib.Path(self.create_tempdir(), "model.tflite"))

    def _compile(self, content: bytes, environment) -> CompiledModel:
        pathlib.Path(self._path).write_bytes(content)
        return CompiledModel.from_file(self._path, environment=environment)

    def _run(self, model: CompiledModel, x: np.ndarray) -> np.ndarray:
        inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
        inputs[0].write(x)
        model.run_by_index(0, inputs, outputs)
        return outputs[0].read(x.size, np.float32).reshape(x.shape)

    @parameterized.product(encoding=backends.ENCODINGS, weight=(True, False))
    def test_encoding(self, encoding, weight):
        x = models.random_input(_SHAPE)
        content = models.norm(encoding, _SHAPE, weight=weight)
        support = backends.support(encoding, weight, "compiled_model_delegate")
        environment = arn.compiled_model.environment()
        if support.outcome == Outcome.UNSUPPORTED:
            with self.assertRaises(RuntimeError):
                self._compile(content, environment)
            return
        model = self._compile(content, environment)
        self.assertTrue(model.is_fully_accelerated())
        y = self._run(model, x)
        self.assertLess(models.relative_error(y, models.reference(x, weight)), 1e-6)
        if weight:  # Without a weight the decomposed result may have the same bits.
            fused = self._compile(models.norm("custom", _SHAPE), environment)
            is_kernel = np.array_equal(y, self._run(fused, x))
            self.assertEqual(is_kernel, support.outcome == Outcome.FUSED)

    def test_dynamic_rows(self):
        builder = Builder()
        x = builder.input((1, 64), signature=(-1, 64))
        content = models.norm("custom", (1, 64), x=x, builder=builder)
        model = self._compile(content, arn.compiled_model.environment())
        for rows in (5, 2):
            value = models.random_input((rows, 64))
            model.resize_input_tensor(0, (rows, 64))
            y = self._run(model, value)
            self.assertLess(models.relative_error(y, models.reference(value)), 1e-6)

    def test_each_environment_has_its_number_of_threads(self):
        # From 16 MiB (read and written) on, one norm alone starts threads.
        x = models.random_input((4096, 640))
        content = models.norm("custom", x.shape)
        one = arn.compiled_model.environment(num_threads=1)
        two = arn.compiled_model.environment(num_threads=2)
        compiled = [self._compile(content, e) for e in (one, two, one)]
        before = _num_threads()
        results = [self._run(model, x) for model in compiled]
        # Only the second environment's kernels have started one, at the first run.
        self.assertEqual(_num_threads() - before, 1)
        self.assertLess(models.relative_error(results[0], models.reference(x)), 1e-6)
        for y in results[1:]:
            np.testing.assert_array_equal(y, results[0])

    def test_a_model_survives_its_environment(self):
        x = models.random_input(_SHAPE)
        model = self._compile(
            models.norm("custom", _SHAPE), arn.compiled_model.environment()
        )
        gc.collect()
        y = self._run(model, x)
        self.assertLess(models.relative_error(y, models.reference(x)), 1e-6)

    @parameterized.parameters(0, 257, -1)
    def test_num_threads_is_checked(self, num_threads):
        with self.assertRaisesRegex(ValueError, f"from 1 to 256, got {num_threads}"):
            arn.compiled_model.environment(num_threads=num_threads)

    @parameterized.parameters("2.1.6", "1.4.0")
    def test_older_versions_are_refused(self, version):
        with (
            mock.patch("importlib.metadata.version", return_value=version),
            self.assertRaisesRegex(RuntimeError, f"is {version}; .* from 2.2 on"),
        ):
            arn.compiled_model.environment()


def _num_threads() -> int:
    return len(list(pathlib.Path("/proc/self/task").iterdir()))


if __name__ == "__main__":
    absltest.main()
