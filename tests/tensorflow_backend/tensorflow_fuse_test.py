"""Fuses what TensorFlow's converter writes for Keras models and functions."""

import os
import pathlib
import re

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

import ai_edge_rms_norm as arn

_SIZE = 32


def _norm(square, root):
    weight = tf.constant(np.linspace(-2, 3, _SIZE), tf.float32)

    def norm(x):
        shifted = tf.reduce_mean(square(x), axis=-1, keepdims=True) + 1e-5
        return weight * root(x, shifted)

    return norm


# As onnx2tf translates Pow, ReduceMean, Add, Sqrt, Div or Reciprocal, Mul, Mul.
_NORMS = {
    "rsqrt": _norm(tf.square, lambda x, v: x * tf.math.rsqrt(v)),
    "divide": _norm(lambda x: tf.pow(x, 2.0), lambda x, v: x / tf.sqrt(v)),
    "one_over": _norm(lambda x: x * x, lambda x, v: x * (1.0 / tf.sqrt(v))),
    "reciprocal": _norm(
        lambda x: x * x, lambda x, v: x * tf.math.reciprocal(tf.sqrt(v))
    ),
    # As jax2tf writes a mean: a sum, and a product or quotient with a constant.
    "sum_over_n": lambda x: (
        x
        * tf.math.rsqrt(tf.reduce_sum(x * x, -1, keepdims=True) / _SIZE + 1e-5)
        * tf.constant(np.linspace(-2, 3, _SIZE), tf.float32)
    ),
    "sum_times_1_over_n": lambda x: (
        tf.constant(np.linspace(-2, 3, _SIZE), tf.float32)
        * x
        / tf.sqrt((1 / _SIZE) * tf.reduce_sum(tf.square(x), -1, keepdims=True) + 1e-5)
    ),
    "power": _norm(tf.square, lambda x, v: tf.pow(v, -0.5) * x),
}


def _random(*shape):
    return (0.1 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


class TensorFlowFuseTest(parameterized.TestCase):
    def _check(self, converter, x, count):
        content = converter.convert()
        model, report = arn.fuse(content)
        self.assertEmpty(report.skipped)
        self.assertLen(report.fused, count)
        self.assertTrue(all(f.has_weight for f in report.fused))
        outputs = []
        for interpreter in (
            tf.lite.Interpreter(model_content=content),
            tf.lite.Interpreter(
                model_content=bytes(model),
                experimental_delegates=[
                    tf.lite.experimental.load_delegate(arn.delegate_path())
                ],
            ),
        ):
            index = interpreter.get_input_details()[0]["index"]
            interpreter.resize_tensor_input(index, x.shape)
            interpreter.allocate_tensors()
            interpreter.set_tensor(index, x)
            interpreter.invoke()
            (detail,) = interpreter.get_output_details()
            outputs.append(interpreter.get_tensor(detail["index"]))
        np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
        return report

    @parameterized.product(name=sorted(_NORMS), rows=[4, None])
    def test_function(self, name, rows):
        function = tf.function(
            _NORMS[name], input_signature=[tf.TensorSpec((rows, _SIZE), tf.float32)]
        )
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [function.get_concrete_function()]
        )
        report = self._check(converter, _random(4, _SIZE), 1)
        self.assertEqual(report.fused[0].epsilon, 1e-5)

    @parameterized.parameters(False, True)
    def test_keras(self, half_precision_weights):
        inputs = tf.keras.Input((6, _SIZE))
        y = tf.keras.layers.RMSNormalization(epsilon=1e-6)(inputs)
        y = tf.keras.layers.Dense(_SIZE)(y)
        y = tf.keras.layers.RMSNormalization(epsilon=1e-3)(y)
        model = tf.keras.Model(inputs, y)
        rng = np.random.default_rng(1)
        model.set_weights([rng.standard_normal(w.shape) for w in model.get_weights()])
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if half_precision_weights:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        report = self._check(converter, _random(2, 6, _SIZE), 2)
        epsilons = [1e-6, 1e-3]
        if half_precision_weights:  # Epsilon is one of the weights.
            epsilons = np.float16(epsilons)
        actual = sorted(f.epsilon for f in report.fused)
        np.testing.assert_array_equal(np.float32(actual), np.float32(epsilons))


class DocumentTest(absltest.TestCase):
    def test_snippets_that_need_tensorflow(self):
        page = pathlib.Path(__file__).parents[2] / "docs/files_of_others.md"
        blocks = re.findall(
            r"<!-- snippet: skip needs TensorFlow.*?-->\n+```python\n(.*?)```",
            page.read_text(),
            re.DOTALL,
        )
        self.assertLen(blocks, 2)
        folder = os.getcwd()
        os.chdir(self.create_tempdir().full_path)
        self.addCleanup(os.chdir, folder)
        namespace = {"__name__": "__main__"}
        for block in blocks:
            exec(compile(block, str(page), "exec"), namespace)
        for name in ("keras_fused.tflite", "jax_fused.tflite"):
            self.assertNotEmpty(arn.Model.load(name).rms_norm_ops())


if __name__ == "__main__":
    absltest.main()
