"""Quantizers on models with norms in every encoding: the norms stay float32."""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from ai_edge_litert import schema_py_generated as schema

import ai_edge_rms_norm as arn
from ai_edge_rms_norm import backends
from ai_edge_rms_norm.tflite import flatbuffer
from testing.tflite_builder import Builder
from tests.backends import environment, models

_WORKER = pathlib.Path(__file__).with_name("quantize.py")
_SIZE = 64
_PACKAGES = ("ai_edge_quantizer", "litert_quantizer")
_DYNAMIC = (
    "dynamic_wi8_afp32",
    "dynamic_wi4_afp32",
    "weight_only_wi8_afp32",
    "weight_only_wi4_afp32",
)
# Of the largest output: int4 has 15 levels.
_ERRORS = {"wi8": 0.05, "wi4": 0.3, "ai8": 0.1}
_TYPE = schema.TensorType


def _matrix() -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.standard_normal((_SIZE, _SIZE)) / np.sqrt(_SIZE)).astype(np.float32)


def model(encoding: str) -> bytes:
    """Returns y = rms_norm(x M) with the signature serving_default(x) -> y."""
    builder = Builder()
    x = builder.input((4, _SIZE))
    weights = builder.constant(_matrix())
    product = builder("FULLY_CONNECTED", x, weights, -1, shape=(4, _SIZE))
    content = models.norm(encoding, (4, _SIZE), builder=builder, x=product)
    tree = flatbuffer.read(content)
    (y,) = tree.subgraphs[0].outputs
    tree.signatureDefs = [
        schema.SignatureDefT(
            inputs=[schema.TensorMapT(name=b"x", tensorIndex=x)],
            outputs=[schema.TensorMapT(name=b"y", tensorIndex=int(y))],
            signatureKey=b"serving_default",
        )
    ]
    return flatbuffer.to_bytes(tree)


def quantize(package: str, recipe: str, content: bytes) -> tuple[bytes | None, str]:
    """Returns the quantized model, or None and what the quantizer said."""
    own = package == "ai_edge_quantizer"
    python = sys.executable if own else environment.python()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "model.tflite").write_bytes(content)
        np.savez(folder / "inputs.npz", models.random_input((4, _SIZE)))
        process = subprocess.run(
            [python, _WORKER, package, recipe, folder / "model.tflite"]
            + [folder / "result.tflite", folder / "inputs.npz"],
            capture_output=True,
            text=True,
        )
        if process.returncode:
            return None, process.stderr
        return (folder / "result.tflite").read_bytes(), ""


class QuantizersTest(parameterized.TestCase):
    def _run(self, content: bytes, x: np.ndarray) -> np.ndarray:
        interpreter = arn.Interpreter(model_content=content)
        runner = interpreter.get_signature_runner("serving_default")
        source = runner.get_input_details()["x"]
        if source["dtype"] == np.int8:
            scale, zero = source["quantization"]
            x = np.clip(np.round(x / scale) + zero, -128, 127).astype(np.int8)
        y = runner(x=x)["y"]
        if y.dtype == np.int8:
            scale, zero = runner.get_output_details()["y"]["quantization"]
            y = (y.astype(np.float32) - zero) * scale
        return y

    @parameterized.product(
        package=_PACKAGES, encoding=backends.ENCODINGS, recipe=_DYNAMIC
    )
    def test_dynamic_and_weight_only(self, package, encoding, recipe):
        quantized, message = quantize(package, recipe, model(encoding))
        self.assertEqual(message, "")
        tree = flatbuffer.read(quantized)
        types = {t.type for s in tree.subgraphs for t in s.tensors}
        self.assertNoCommonElements(types, {_TYPE.INT16})
        self.assertNotEmpty(types & {_TYPE.INT8, _TYPE.INT4})
        # The weight of the norm is the only other large constant.
        weight = models.weight_of(_SIZE).tobytes()
        buffers = [bytes(b.data) for b in tree.buffers if b.data is not None]
        self.assertIn(weight, buffers)
        x = models.random_input((4, _SIZE))
        error = models.relative_error(
            self._run(quantized, x),
            models.reference(x.astype(np.float64) @ _matrix().T),
        )
        self.assertLess(error, _ERRORS["wi4" if "wi4" in recipe else "wi8"])
        if encoding != backends.PLAIN:
            self.assertLen(arn.Model(quantized).rms_norm_ops(), 1)

    @parameterized.product(package=_PACKAGES, encoding=backends.ENCODINGS)
    def test_static(self, package, encoding):
        quantized, message = quantize(package, "static_wi8_ai8", model(encoding))
        if backends.support(encoding, True, "interpreter").outcome.is_right:
            self.assertEqual(message, "")
            x = models.random_input((4, _SIZE))
            expected = models.reference(x.astype(np.float64) @ _matrix().T)
            error = models.relative_error(self._run(quantized, x), expected)
            self.assertLess(error, _ERRORS["ai8"])
        else:
            # It calibrates with the stock interpreter, which lacks the operator.
            self.assertIsNone(quantized)


if __name__ == "__main__":
    absltest.main()
