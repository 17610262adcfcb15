"""The proposal for litert-torch runs with litert-torch as it is."""

import litert_torch
import numpy as np
import torch
from absl.testing import absltest, parameterized
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.tflite import flatbuffer
from examples import litert_torch_composite

_SIZE = 64


def _reference(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


class LitertTorchCompositeTest(parameterized.TestCase):
    @parameterized.parameters(0.0, 1e-3, 1.0, 300.0, 1e4)
    def test_float16_within_its_range(self, scale):
        rng = np.random.default_rng(0)
        x = np.float16(scale * rng.standard_normal((4, _SIZE)))
        # Operator by operator in float16, as a GPU computes.
        y = litert_torch_composite.range_safe_rms_norm(
            torch.from_numpy(x), torch.ones(_SIZE, dtype=torch.float16), 1e-6
        )
        expected = _reference(x, np.ones(_SIZE), 1e-6)
        error = np.abs(y.numpy() - expected).max()
        self.assertLessEqual(error, 4e-3 * max(np.abs(expected).max(), 1e-4))

    @parameterized.parameters(False, True)
    def test_composite_in_the_file(self, zero_centered):
        norm = litert_torch_composite.RMSNorm(_SIZE, 0.25, zero_centered)
        norm.weight += 0.1 * torch.randn(_SIZE)
        x = torch.randn(4, _SIZE)
        content = litert_torch.convert(norm.eval(), (x,)).model_content()
        tree = flatbuffer.read(content)
        (operator,) = tree.subgraphs[0].operators
        code = tree.operatorCodes[operator.opcodeIndex].builtinCode
        self.assertEqual(code, schema.BuiltinOperator.STABLEHLO_COMPOSITE)
        self.assertLen(operator.inputs, 2)
        (op,) = arn.find_ops(tree)
        self.assertEqual((op.encoding, op.epsilon), (arn.Encoding.COMPOSITE, 0.25))

        weight = norm.weight.numpy() + zero_centered
        expected = _reference(x.numpy(), weight, 0.25)
        for interpreter in (Interpreter, arn.Interpreter):
            runner = interpreter(model_content=content).get_signature_runner()
            y = runner(args_0=x.numpy())["output_0"]
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    absltest.main()
