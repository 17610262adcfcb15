"""The three encodings in a finished flatbuffer, and reading and writing it."""

import concurrent.futures
import copy
import importlib
import os
import pathlib
import unittest

import numpy as np
import torch
from absl.testing import absltest, parameterized
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import quantizer, recipe

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.conversion.torch_frontend import FRONT_END
from ai_edge_rms_norm.tflite import edit, encoding, flatbuffer, op_options

_OP = schema.BuiltinOperator


def tree(node):
    """Returns an object tree as plain values that compare with ==."""
    if isinstance(node, np.ndarray):
        return (str(node.dtype), node.tolist())
    if isinstance(node, list):
        return [tree(child) for child in node]
    if hasattr(node, "__dict__"):
        return {name: tree(child) for name, child in vars(node).items()}
    return node


class Block(torch.nn.Module):
    """Both operators, two epsilons, a weight that is shared, a matrix."""

    def __init__(self, hidden_size=16):
        super().__init__()
        self.norm = arn.RMSNorm(hidden_size, eps=1e-5)
        self.plain = arn.RMSNorm(hidden_size, elementwise_affine=False)
        self.linear = torch.nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x):
        total, y = self.norm(self.linear(self.norm(x)), residual=x)
        return self.plain(y) + total


def block(**kwargs):
    torch.manual_seed(0)
    module = Block(**kwargs).eval()
    module.norm.weight.data.normal_()
    return module


def norm() -> bytes:
    return bytes(arn.convert(arn.RMSNorm(16, eps=1e-5).eval(), (torch.ones(2, 16),)))


def two_signatures():
    module = block()
    return (
        arn.signature("prefill", module, (torch.ones(2, 4, 16),))
        .signature("decode", module, (torch.ones(2, 1, 16),))
        .convert()
    )


def dynamic():
    rows = torch.export.Dim("rows")
    return arn.convert(block(), (torch.ones(3, 16),), dynamic_shapes=({0: rows},))


def quantized():
    """int8 weights, float32 activations."""
    model = bytes(arn.convert(block(hidden_size=64), (torch.ones(3, 64),)))
    result = quantizer.Quantizer(model, recipe.dynamic_wi8_afp32()).quantize()
    return arn.Model(bytes(result.quantized_model))


def float16():
    if not FRONT_END.converter:
        raise unittest.SkipTest("TensorFlow rejects BATCH_MATMUL in float16")
    return arn.convert(block().half(), (torch.ones(3, 16).half(),))


class TranslationTest(parameterized.TestCase):
    @parameterized.parameters(two_signatures, dynamic, float16, quantized)
    def test_round_trip_is_lossless(self, make_model):
        model = make_model()
        original = tree(flatbuffer.read(model.model_content()))
        custom = model.translate("custom")
        self.assertNotEqual(tree(flatbuffer.read(bytes(custom))), original)
        back = custom.translate("stablehlo_custom_call")
        self.assertEqual(tree(flatbuffer.read(bytes(back))), original)
        self.assertEqual(back.rms_norm_ops(), model.rms_norm_ops())

    def test_composite_round_trip_is_lossless(self):
        module = torch.nn.Sequential(arn.RMSNorm(16), torch.nn.Linear(16, 16)).eval()
        model = arn.convert(module, (torch.ones(3, 16),))
        composite = model.translate("composite")
        self.assertLen(flatbuffer.read(bytes(composite)).subgraphs, 2)
        back = composite.translate("stablehlo_custom_call")
        self.assertEqual(
            tree(flatbuffer.read(bytes(back))),
            tree(flatbuffer.read(bytes(model))),
        )

    def test_custom_fields(self):
        model = flatbuffer.read(bytes(dynamic().translate("custom")))
        nodes = arn.find_ops(model)
        self.assertEqual([node.epsilon for node in nodes], [1e-5, 1e-5, 1e-6])
        for node in nodes:
            operator = model.subgraphs[node.subgraph].operators[node.operator]
            code = model.operatorCodes[operator.opcodeIndex]
            self.assertEqual(code.builtinCode, 32)
            self.assertEqual(code.deprecatedBuiltinCode, 32)
            self.assertEqual(code.customCode.decode(), node.call_target)
            self.assertIsNone(operator.builtinOptions2)
            self.assertEqual(operator.customOptionsFormat, 0)  # FLEXBUFFERS
        self.assertEqual(
            [node.call_target for node in nodes],
            [op_options.RMS_NORM, op_options.ADD_RMS_NORM, op_options.RMS_NORM],
        )

    @parameterized.parameters(dynamic, float16)
    def test_composite_runs_in_the_stock_interpreter(self, make_model):
        model = make_model()
        interpreter = litert.Interpreter(
            model_content=bytes(model.translate("composite"))
        )
        runner = interpreter.get_signature_runner()
        (detail,) = runner.get_input_details().values()
        dtype = detail["dtype"]
        x = np.random.default_rng(0).standard_normal((3, 16)).astype(dtype)
        module = block().half() if dtype == np.float16 else block()
        expected = module(torch.from_numpy(x)).detach().numpy()
        tolerance = 8 * np.finfo(dtype).eps
        np.testing.assert_allclose(
            runner(args_0=x)["output_0"], expected, rtol=tolerance, atol=8 * tolerance
        )

    def test_composite_that_computes_more_is_left_alone(self):
        """The front end's layer with a second scale has the same composite name."""
        normalization = importlib.import_module(
            f"{FRONT_END.module}.generative.layers.normalization"
        )
        layers = {
            "plain": normalization.RMSNorm(16, enable_hlfb=True),
            "scaled": normalization.RMSNorm(
                16, with_scale=True, scale_shift=3.0, enable_hlfb=True
            ),
        }
        found = {}
        for name, layer in layers.items():
            model = arn.convert(layer.eval(), (torch.ones(3, 16),))
            (node,) = model.rms_norm_ops()
            found[name] = node.encoding.value
        self.assertEqual(
            found, {"plain": "stablehlo_custom_call", "scaled": "composite"}
        )

    @parameterized.parameters(
        (b"",), (b"\x00",), (bytes(range(40)),), (b'{"epsilon": 1e-6}',)
    )
    def test_damaged_options_are_named(self, options):
        model = flatbuffer.read(bytes(dynamic().translate("custom")))
        node = arn.find_ops(model)[1]
        operator = model.subgraphs[0].operators[node.operator]
        operator.customOptions = np.frombuffer(options, np.uint8)
        with self.assertRaisesRegex(
            ValueError, f"subgraph 0, operator {node.operator}: custom_options"
        ):
            encoding.translate(flatbuffer.to_bytes(model), "stablehlo_custom_call")


class FileTest(parameterized.TestCase):
    def test_reading_and_writing_changes_nothing(self):
        for make_model in (two_signatures, dynamic):
            content = bytes(make_model())
            model = flatbuffer.read(content)
            again = flatbuffer.read(flatbuffer.to_bytes(model))
            self.assertEqual(tree(again), tree(flatbuffer.read(content)))

    def test_weights_are_aligned(self):
        """schema.fbs: Buffer.data has force_align 16."""
        content = bytes(two_signatures().translate("custom"))
        model = schema.Model.GetRootAs(content)
        address = np.frombuffer(content, np.uint8).ctypes.data
        checked = 0
        for i in range(model.BuffersLength()):
            if not model.Buffers(i).DataIsNone():
                data = model.Buffers(i).DataAsNumpy()
                self.assertEqual((data.ctypes.data - address) % 16, 0)
                checked += 1
        self.assertGreater(checked, 1)

    def test_buffers_outside_the_flatbuffer(self):
        model = flatbuffer.read(bytes(dynamic()))
        weights = {}
        for i, buffer in enumerate(model.buffers):
            if buffer.data is not None and len(buffer.data) >= 64:
                weights[i] = np.array(buffer.data)
                buffer.external, buffer.data = weights[i], None
                buffer.offset, buffer.size = 16, len(weights[i])
        self.assertNotEmpty(weights)
        outside = flatbuffer.to_bytes(model)
        custom = encoding.translate(outside, "custom")
        model = flatbuffer.read(custom)
        for i, weight in weights.items():
            buffer = model.buffers[i]
            self.assertIsNone(buffer.data)
            self.assertEqual(buffer.offset % 16, 0)
            np.testing.assert_array_equal(buffer.external, weight)
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
        np.testing.assert_allclose(
            arn.Model(custom)(x.numpy()),
            block()(x).detach().numpy(),
            rtol=1e-4,
            atol=1e-5,
        )

    @parameterized.parameters((b"",), (b"x" * 100,), (b"\x00\x00\x00\x00TFL3\xff",))
    def test_damaged_files_are_errors(self, content):
        with self.assertRaisesRegex(ValueError, "tflite"):
            arn.translate(content, "custom")
        path = os.path.join(self.create_tempdir().full_path, "damaged.tflite")
        pathlib.Path(path).write_bytes(content)
        with self.assertRaisesRegex(ValueError, "damaged.tflite"):
            arn.Interpreter(model_path=path)

    def test_truncated_files_are_errors(self):
        content = bytes(dynamic())
        # The last bytes are of the last table only, which nobody may miss.
        for size in range(8, len(content) - 128, 97):
            with self.assertRaisesRegex(ValueError, "model is a damaged .tflite"):
                arn.translate(content[:size], "custom")
            with self.assertRaisesRegex(ValueError, "model_content"):
                arn.Interpreter(model_content=content[:size])

    def test_indices_of_nothing_are_errors(self):
        def change(edit):
            model = flatbuffer.read(norm())
            edit(model)
            return flatbuffer.to_bytes(model)

        def operator(model):
            return model.subgraphs[0].operators[0]

        def call_subgraph_77(model):
            operator(model).builtinOptions2 = None
            operator(model).builtinOptions2Type = 0
            operator(model).builtinOptionsType = schema.BuiltinOptions.CallOnceOptions
            operator(model).builtinOptions = schema.CallOnceOptionsT(77)

        for damage, message in (
            (lambda m: setattr(operator(m), "opcodeIndex", 9), "operator code 9"),
            (lambda m: setattr(operator(m), "inputs", [99]), "tensor 99"),
            (lambda m: setattr(m.subgraphs[0].tensors[0], "buffer", 77), "buffer 77"),
            (lambda m: setattr(m.signatureDefs[0], "subgraphIndex", 5), "subgraph 5"),
            (lambda m: setattr(m, "metadataBuffer", [66]), "buffer 66"),
            (call_subgraph_77, "subgraph 77"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                arn.translate(change(damage), "custom")
        wrong = change(lambda m: setattr(m.subgraphs[0].operators[0], "outputs", []))
        with self.assertRaisesRegex(ValueError, "must have 1 or 2 inputs and 1 output"):
            arn.Model(wrong).rms_norm_ops()

    def test_optional_outputs(self):
        model = flatbuffer.read(norm())
        model.subgraphs[0].outputs = [*model.subgraphs[0].outputs, -1]
        self.assertLen(arn.Model(flatbuffer.to_bytes(model)).rms_norm_ops(), 1)

    def test_custom_options_outside_the_flatbuffer(self):
        model = flatbuffer.read(arn.translate(norm(), "custom"))
        (ours,) = model.subgraphs[0].operators
        theirs = copy.deepcopy(ours)
        theirs.opcodeIndex = edit.intern_operator_code(model, 32, "vendor")
        model.subgraphs[0].operators.append(theirs)
        contents = {"ours": bytes(bytearray(ours.customOptions)), "vendor": b"x" * 40}
        for operator, data in zip((ours, theirs), contents.values(), strict=True):
            operator.customOptions = None
            operator.external = np.frombuffer(data, np.uint8)
            operator.largeCustomOptionsOffset = 16
            operator.largeCustomOptionsSize = len(data)
        outside = flatbuffer.to_bytes(model)
        (node,) = arn.Model(outside).rms_norm_ops()
        self.assertEqual(node.epsilon, 1e-5)
        for target in ("custom", "stablehlo_custom_call"):
            translated = flatbuffer.read(arn.translate(outside, target))
            vendor = translated.subgraphs[0].operators[1]
            self.assertEqual(edit.custom_options(vendor), contents["vendor"])
        self.assertEqual(translated.subgraphs[0].operators[0].largeCustomOptionsSize, 0)

    def test_operator_codes_of_old_files(self):
        model = flatbuffer.read(arn.translate(norm(), "custom"))
        for code in model.operatorCodes:
            code.builtinCode = 0  # Before schema version 3a.
        self.assertLen(arn.Model(flatbuffer.to_bytes(model)).rms_norm_ops(), 1)


class WriteFileTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def test_link(self):
        (self.folder / "real.tflite").write_bytes(b"old")
        link = self.folder / "link.tflite"
        link.symlink_to("real.tflite")
        flatbuffer.write_file(link, b"new")
        self.assertTrue(link.is_symlink())
        self.assertEqual((self.folder / "real.tflite").read_bytes(), b"new")

    def test_pipe(self):
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)
        with concurrent.futures.ThreadPoolExecutor() as executor:
            read = executor.submit(pipe.read_bytes)
            flatbuffer.write_file(pipe, b"content")
            self.assertEqual(read.result(), b"content")
        self.assertTrue(pipe.is_fifo())

    def test_pipe_without_a_name(self):
        reader, writer = os.pipe()
        flatbuffer.write_file(f"/dev/fd/{writer}", b"content")
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            self.assertEqual(file.read(), b"content")


if __name__ == "__main__":
    absltest.main()
