"""PyTorch against the interpreter, over encodings, shapes, sizes and dtypes."""

import copy
import pickle

import numpy as np
import torch
from absl.testing import absltest, parameterized
from ai_edge_litert import interpreter as litert

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.tflite import encoding
from testing import transformer

ENCODINGS = [e.value for e in encoding.Encoding]


def random(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


class Norms(torch.nn.Module):
    """Both operators on one input, so that only their own error is measured."""

    def __init__(self, hidden_size, eps, dtype=torch.float32, weight_offset=0.0):
        super().__init__()
        # A float32 weight: litert-torch cannot store bfloat16 constants.
        self.norm = arn.RMSNorm(hidden_size, eps, weight_offset=weight_offset)
        self.norm.weight.data = random(hidden_size, seed=9)

    def forward(self, x, residual):
        return self.norm(x), *self.norm(x, residual)


def assert_close(actual, expected, dtype):
    """One rounding to dtype on either side, and float32 statistics."""
    eps = torch.finfo(dtype).eps
    rtol = eps + 8 * torch.finfo(torch.float32).eps
    actual = torch.from_numpy(np.asarray(actual, dtype=np.float64))
    torch.testing.assert_close(actual, expected.double(), rtol=rtol, atol=1e-30)


class EndToEndTest(parameterized.TestCase):
    @parameterized.product(
        encoding=ENCODINGS,
        # Gemma 3 270M and 1B, Qwen 3 (q/k norm and 1.7B), Llama 3.2 1B.
        model=[
            (640, 1e-6, 1.0),
            (1152, 1e-6, 1.0),
            (128, 1e-6, 0.0),
            (2048, 1e-5, 0.0),
        ],
    )
    def test_static_shapes(self, encoding, model):
        hidden_size, eps, weight_offset = model
        module = Norms(hidden_size, eps, weight_offset=weight_offset).eval()
        inputs = random(7, hidden_size), random(7, hidden_size, seed=1)
        result = arn.convert(module, inputs, encoding=encoding)(*inputs)
        for actual, expected in zip(result, module(*inputs), strict=True):
            assert_close(actual, expected.detach(), torch.float32)

    @parameterized.product(encoding=ENCODINGS, dtype=[torch.float32, torch.float16])
    def test_dynamic_shapes(self, encoding, dtype):
        batch, rows = torch.export.Dim("batch"), torch.export.Dim("rows")
        inputs = random(2, 3, 64, dtype=dtype), random(2, 3, 64, seed=1, dtype=dtype)
        module = Norms(64, 1e-6).eval()
        dims = {0: batch, 1: rows}
        model = arn.convert(
            module, inputs, dynamic_shapes=(dims, dims), encoding=encoding
        )
        for shape in ((1, 1), (5, 33), (2, 3)):
            inputs = (
                random(*shape, 64, seed=2, dtype=dtype),
                random(*shape, 64, seed=3, dtype=dtype),
            )
            result = model(*(x.numpy() for x in inputs))
            for actual, expected in zip(result, module(*inputs), strict=True):
                self.assertEqual(actual.shape, tuple(expected.shape))
                assert_close(actual, expected.detach(), dtype)

    @parameterized.product(
        encoding=ENCODINGS[:2], dtype=[torch.float16, torch.bfloat16]
    )
    def test_half_precision(self, encoding, dtype):
        """In and out through float32: NumPy has no bfloat16."""

        class Half(Norms):
            def forward(self, x, residual):
                outputs = super().forward(x.to(dtype), residual.to(dtype))
                return tuple(y.float() for y in outputs)

        module = Half(256, 1e-6).eval()
        inputs = random(5, 256), random(5, 256, seed=1)
        model = arn.convert(module, inputs, encoding=encoding)
        self.assertLen(model.rms_norm_ops(), 2)
        for actual, expected in zip(model(*inputs), module(*inputs), strict=True):
            assert_close(actual, expected.detach(), dtype)

    @parameterized.parameters(1, 2)
    def test_transformer_blocks(self, num_threads):
        blocks = {
            (2, 16, 640): transformer.MlpBlock(arn.RMSNorm, 640, 1024),
            (1, 12, 256): transformer.DecoderLayer(arn.RMSNorm, 256, 512, 4, 1, 64),
        }
        for shape, block in blocks.items():
            transformer.randomize(block)
            x = random(*shape)
            model = arn.convert(block, (x,))
            interpreter = model.interpreter(num_threads=num_threads)
            actual = interpreter.get_signature_runner()(args_0=x.numpy())["output_0"]
            expected = block(x).detach().numpy()
            scale = np.abs(expected).max()
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


class ExampleInputsTest(absltest.TestCase):
    def test_one_tensor_for_several_inputs(self):
        """litert-torch 0.10 takes one object as one input, silently."""

        class Model(torch.nn.Module):
            def forward(self, x, cache):
                return arn.rms_norm(x) + 2 * cache["keys"] + 3 * cache["values"]

        zeros = torch.zeros(2, 16)
        model = arn.convert(Model().eval(), (zeros, {"keys": zeros, "values": zeros}))
        inputs = [np.full((2, 16), value, np.float32) for value in (1, 10, 100)]
        names = sorted(
            model.interpreter().get_signature_list()["serving_default"]["inputs"]
        )
        self.assertLen(names, 3)
        y = model(**dict(zip(names, inputs, strict=True)))
        np.testing.assert_allclose(y, np.full((2, 16), 1 + 20 + 300), rtol=1e-6)


class InterpreterTest(absltest.TestCase):
    def test_unknown_call_target_is_named(self):
        content = bytes(arn.convert(arn.RMSNorm(8).eval(), (random(2, 8),)))
        other = content.replace(b"ai_edge_torch.rms_norm", b"ai_edge_torch.rms_nope")
        self.assertNotEqual(other, content)
        with self.assertRaisesRegex(
            ValueError,
            r"calls 'ai_edge_torch\.rms_nope'.*knows ai_edge_torch\.rms_norm",
        ):
            arn.Interpreter(model_content=other)

    def test_stock_interpreter_runs_custom_with_our_delegate(self):
        module, x = arn.RMSNorm(64).eval(), random(3, 64)
        content = bytes(arn.convert(module, (x,), encoding="custom"))
        with self.assertRaisesRegex(RuntimeError, "ai_edge_torch.rms_norm"):
            litert.Interpreter(model_content=content).allocate_tensors()
        delegate = litert.load_delegate(arn.delegate_path())
        interpreter = litert.Interpreter(
            model_content=content, experimental_delegates=[delegate]
        )
        y = interpreter.get_signature_runner()(args_0=x.numpy())["output_0"]
        assert_close(y, module(x).detach(), torch.float32)

    def test_arguments(self):
        content = bytes(arn.convert(arn.RMSNorm(8).eval(), (random(2, 8),)))
        with self.assertRaisesRegex(ValueError, "exactly one of"):
            arn.Interpreter()
        with self.assertRaisesRegex(ValueError, "exactly one of"):
            arn.Interpreter(model_path="a.tflite", model_content=content)
        with self.assertRaisesRegex(FileNotFoundError, "missing.tflite"):
            arn.Interpreter(model_path="missing.tflite")
        interpreter = arn.Interpreter(
            model_content=content, experimental_preserve_all_tensors=True
        )
        self.assertIn("serving_default", interpreter.get_signature_list())

    def test_model_is_copied_after_a_call(self):
        model = arn.convert(arn.RMSNorm(8).eval(), (random(2, 8),))
        x = random(2, 8).numpy()
        y = model(x)
        np.testing.assert_array_equal(copy.deepcopy(model)(x), y)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(model))(x), y)

    def test_resize_tensor_input(self):
        module = arn.RMSNorm(64).eval()
        content = bytes(arn.convert(module, (random(3, 64),)))
        interpreter = arn.Interpreter(model_content=content)
        (detail,) = interpreter.get_input_details()
        for rows in (1, 100, 3):
            x = random(rows, 64, seed=rows)
            interpreter.resize_tensor_input(detail["index"], x.shape)
            interpreter.allocate_tensors()
            interpreter.set_tensor(detail["index"], x.numpy())
            interpreter.invoke()
            y = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
            assert_close(y, module(x).detach(), torch.float32)

    def test_kernel_variant(self):
        self.assertIn(arn.kernel_variant(), arn.kernel_variants())


if __name__ == "__main__":
    absltest.main()
