"""Models in TensorFlow's own interpreter: with the delegate, and with the ops."""

import ctypes

import numpy as np
import tensorflow as tf
import torch
from absl import flags
from absl.testing import absltest, parameterized
from tensorflow.lite.python import interpreter as tf_lite_interpreter

import ai_edge_rms_norm as arn

_RESOLVER = flags.DEFINE_string(
    "resolver",
    "tests/tensorflow_backend/libtensorflow_resolver.so",
    "Path of //tests/tensorflow_backend:tensorflow_resolver.",
)


class _Norms(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = arn.RMSNorm(48, eps=1e-5)
        torch.nn.init.normal_(self.norm.weight)

    def forward(self, x, residual):
        total, y = self.norm(x, residual)
        return arn.rms_norm(y + 1), total


class TensorFlowRuntimeTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        torch.manual_seed(0)
        cls.module = _Norms().eval()
        cls.args = torch.randn(5, 48), torch.randn(5, 48)
        cls.model = arn.convert(cls.module, cls.args, encoding="custom")

    def _check(self, interpreter):
        x, residual = (arg.numpy() for arg in self.args)
        result = interpreter.get_signature_runner()(args_0=x, args_1=residual)
        for i, expected in enumerate(self.module(*self.args)):
            np.testing.assert_allclose(
                result[f"output_{i}"], expected.detach().numpy(), rtol=2e-6, atol=1e-6
            )

    def test_stock_interpreter_does_not_know_the_operators(self):
        interpreter = tf.lite.Interpreter(model_content=bytes(self.model))
        with self.assertRaisesRegex(RuntimeError, "unresolved custom op: ai_edge_"):
            interpreter.allocate_tensors()

    def test_delegate(self):
        delegate = tf.lite.experimental.load_delegate(arn.delegate_path())
        self._check(
            tf.lite.Interpreter(
                model_content=bytes(self.model), experimental_delegates=[delegate]
            )
        )

    def test_ops_registered_with_mutable_op_resolver(self):
        # TensorFlow loads its library for itself; the resolver needs its symbols.
        ctypes.CDLL("libtensorflow_cc.so.2", ctypes.RTLD_GLOBAL)
        register = ctypes.CDLL(_RESOLVER.value).RegisterRmsNormOps
        register.argtypes = [ctypes.c_void_p]
        resolvers = []

        def registerer(resolver: int) -> None:
            resolvers.append(resolver)
            register(resolver)

        interpreter = tf_lite_interpreter.InterpreterWithCustomOps(
            custom_op_registerers=[registerer], model_content=bytes(self.model)
        )
        self.assertLen(resolvers, 1)
        self._check(interpreter)


if __name__ == "__main__":
    absltest.main()
