"""The encodings in a finished flatbuffer, and reading and writing it."""

import concurrent.futures
import copy
import functools
import importlib
import os
import pathlib
import re
import unittest

import numpy as np
import torch
from absl.testing import absltest, parameterized
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import quantizer, recipe
from flatbuffers import flexbuffers

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.conversion.torch_frontend import FRONT_END
from ai_edge_rms_norm.tflite import edit, encoding, flatbuffer, op_options
from testing.tflite_builder import Builder
from tests import pattern_cases
from tests.tflite import corpus

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


@functools.cache
def norm() -> bytes:
    return bytes(arn.convert(arn.RMSNorm(16, eps=1e-5).eval(), (torch.ones(2, 16),)))


@functools.cache
def two_norms(dtype) -> bytes:
    module = torch.nn.Sequential(
        arn.RMSNorm(16, eps=1.23456789e-06),
        torch.nn.SiLU(),
        arn.RMSNorm(16, elementwise_affine=False, eps=1e-30),
    )
    x = torch.ones(3, 16, dtype=dtype)
    return bytes(arn.convert(module.to(dtype).eval(), (x,)))


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

    @parameterized.product(
        encoding=["composite", "decomposed", "ml_drift"],
        range_safe=[True, False],
        dtype=[torch.float32, torch.float16],
    )
    def test_round_trip_is_lossless_byte_for_byte(self, encoding, range_safe, dtype):
        """Also of epsilons that float32 does not hold, and without a weight."""
        original = two_norms(dtype)
        there = arn.translate(original, encoding, range_safe=range_safe)
        norms = arn.find_ops(flatbuffer.read(there))
        self.assertEqual([n.encoding.value for n in norms], [encoding] * 2)
        self.assertEqual([n.epsilon for n in norms], [1.23456789e-06, 1e-30])
        self.assertEqual(arn.translate(there, "stablehlo_custom_call"), original)
        # By way of every other encoding, too.
        for other in arn.Encoding:
            there = arn.translate(there, other, range_safe=range_safe)
        self.assertEqual(arn.translate(there, "stablehlo_custom_call"), original)

    @parameterized.parameters("composite", "decomposed", "ml_drift")
    def test_additions_stay_apart(self, encoding):
        model = two_signatures()
        there = model.translate(encoding)
        custom = there.translate("custom")
        names = [node.call_target for node in custom.rms_norm_ops()]
        self.assertEqual(names, [op_options.RMS_NORM] * 6)
        self.assertEqual(
            [n.epsilon for n in custom.rms_norm_ops()],
            [n.epsilon for n in model.rms_norm_ops()],
        )
        x = np.random.default_rng(0).standard_normal((2, 4, 16)).astype(np.float32)
        np.testing.assert_allclose(
            custom(x, signature_name="prefill"),
            model(x, signature_name="prefill"),
            rtol=1e-5,
            atol=1e-5,
        )

    @parameterized.parameters("composite", "ml_drift")
    def test_weights_of_ones_of_others_stay(self, encoding):
        """Only those that the translation has added are left out again."""
        module = torch.nn.Sequential(arn.RMSNorm(16), arn.RMSNorm(16))
        module[1].weight = None
        model = arn.convert(module.eval(), (torch.ones(3, 16),))
        there = model.translate(encoding)
        self.assertEqual([len(n.inputs) for n in there.rms_norm_ops()], [2, 2])
        back = there.translate("custom")
        self.assertEqual([len(n.inputs) for n in back.rms_norm_ops()], [2, 1])

    @parameterized.product(
        call_target=list(op_options.CALL_TARGETS),
        target=["custom", "stablehlo_custom_call", "composite", "ml_drift"],
    )
    def test_every_operator_is_its_decomposition(self, call_target, target):
        """Fails for an operator that the delegate or the translation forgets."""
        b = Builder()
        terms, results = op_options.CALL_TARGETS[call_target]
        rng = np.random.default_rng(0)
        xs = [rng.standard_normal((3, 16)).astype(np.float32) for _ in range(terms)]
        inputs = [b.input((3, 16)) for _ in xs]
        outputs = [b.tensor((3, 16)) for _ in range(results)]
        weight = b.constant(rng.standard_normal(16))
        b.custom(call_target, [*inputs, weight], outputs, {"epsilon": 0.5})
        content = b.content(*outputs)

        def run(make_interpreter, encoding):
            interpreter = make_interpreter(
                model_content=arn.translate(content, encoding)
            )
            interpreter.allocate_tensors()
            for index, x in zip(inputs, xs, strict=True):
                interpreter.set_tensor(index, x)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in outputs]

        expected = run(litert.Interpreter, "decomposed")
        actual = run(arn.Interpreter, target)
        np.testing.assert_allclose(actual, expected, rtol=2e-6)

    @parameterized.parameters(1e-37, 1e-20, 1.0, 300.0, 1e19, 3e38)
    def test_decomposed_rows_of_every_magnitude(self, magnitude):
        """In float32; the plain form overflows from 1e19 on and vanishes below."""
        content = arn.translate(norm(), "decomposed")
        runner = litert.Interpreter(model_content=content).get_signature_runner()
        rng = np.random.default_rng(0)
        # No subnormal numbers: the runtime takes them for 0.
        x = magnitude * rng.uniform(0.5, 1, (2, 16)) * rng.choice([-1, 1], (2, 16))
        x = x.astype(np.float32)
        wide = x.astype(np.float64)
        expected = wide / np.sqrt(np.mean(wide**2, -1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(runner(args_0=x)["output_0"], expected, rtol=2e-6)

    def test_decomposed_operators(self):
        """The contract with the delegate and with other readers of the file."""
        model = flatbuffer.read(arn.translate(norm(), "decomposed"))
        names = {v: k for k, v in vars(_OP).items() if k.isupper()}
        subgraph = model.subgraphs[0]
        self.assertEqual(
            [
                names[model.operatorCodes[o.opcodeIndex].builtinCode]
                for o in subgraph.operators
            ],
            [
                *("ABS", "REDUCE_MAX", "MAXIMUM", "DIV", "MUL", "MEAN"),
                *("DIV", "MUL", "ADD", "RSQRT", "MUL", "MUL"),
            ],
        )
        (constant,) = (
            t for t in subgraph.tensors if b"/sqrt_epsilon=" in t.name and t.buffer
        )
        self.assertEndsWith(constant.name.decode(), "/sqrt_epsilon=1e-05")
        data = bytes(model.buffers[constant.buffer].data)
        self.assertEqual(data, np.float32(np.sqrt(1e-5)).tobytes())

    @parameterized.parameters(
        ("model/norm;", "model/norm"),
        ("model/norm;12", "model/norm_12"),
        ("a/norm;b/norm", "a/norm;b/norm"),
        (";", ";"),
        ("", "rms_norm"),
    )
    def test_operators_stay_in_their_layer(self, name, layer):
        """Viewers read the layer from the names of the tensors, up to a semicolon."""
        model = flatbuffer.read(arn.translate(norm(), "custom"))
        (operator,) = model.subgraphs[0].operators
        model.subgraphs[0].tensors[operator.outputs[0]].name = name.encode()
        encoding.translate_model(model, encoding.Encoding.DECOMPOSED)
        subgraph = model.subgraphs[0]
        inside = [subgraph.tensors[o.outputs[0]] for o in subgraph.operators[:-1]]
        self.assertEqual({t.name.decode().rpartition("/")[0] for t in inside}, {layer})

    @parameterized.parameters(1e-100, 1e100)
    def test_epsilon_without_a_root_in_float32(self, epsilon):
        module = arn.RMSNorm(16, eps=epsilon).eval()
        model = arn.convert(module, (torch.ones(2, 16),))
        with self.assertRaisesRegex(ValueError, "is not a finite float32 > 0"):
            model.translate("decomposed")

    @parameterized.parameters("composite", "decomposed", "ml_drift")
    def test_operands_without_a_kernel(self, encoding):
        model = flatbuffer.read(norm())
        model.subgraphs[0].tensors[0].type = schema.TensorType.INT8
        content = flatbuffer.to_bytes(model)
        with self.assertRaisesRegex(ValueError, "x, '.*', is int8"):
            arn.translate(content, encoding)
        model.subgraphs[0].operators[0].inputs = [-1, 1]
        content = flatbuffer.to_bytes(model)
        with self.assertRaisesRegex(ValueError, "must have all inputs but the weight"):
            arn.translate(content, encoding)

    def test_ml_drift_fields(self):
        model = flatbuffer.read(arn.translate(norm(), "ml_drift"))
        (operator,) = model.subgraphs[0].operators
        code = model.operatorCodes[operator.opcodeIndex]
        self.assertEqual(
            (code.builtinCode, code.customCode), (32, b"custom_call.RmsNorm")
        )
        self.assertEqual(
            edit.custom_options(operator), op_options.encode_custom_options(1e-5)
        )
        self.assertLen(operator.inputs, 2)

    @parameterized.parameters(((16,),), ((1, 1, 1, 2, 16),))
    def test_ranks_that_ml_drift_does_not_take(self, shape):
        b = Builder()
        content = b.content(pattern_cases.norm(b, b.input(shape), b.constant([1] * 16)))
        reason = f"needs x of rank 2 to 4, its shape is {re.escape(str(list(shape)))}"
        self._check_refused(content, reason)

    def test_weight_that_ml_drift_does_not_take(self):
        b = Builder()
        y = pattern_cases.norm(b, b.input((2, 16)), b.input((16,)))
        self._check_refused(b.content(y), "needs a constant weight, 't1' is computed")

    def _check_refused(self, content, reason):
        model, report = arn.fuse(content, encoding="ml_drift")
        self.assertEmpty(report.fused)
        self.assertEqual(bytes(model), content)
        self.assertRegex(report.skipped[0].reason, reason)
        custom, _ = arn.fuse(content)
        with self.assertRaisesRegex(ValueError, f"^subgraph 0, operator 0: .*{reason}"):
            custom.translate("ml_drift")

    @parameterized.parameters("composite", "decomposed")
    def test_plain_form(self, encoding):
        b = Builder()
        x, weight = b.input((2, 16)), b.constant(np.ones(16))
        plain = b.content(pattern_cases.norm(b, x, weight))
        converted = arn.convert(
            arn.RMSNorm(16, eps=1e-3).eval(),
            (torch.ones(2, 16),),
            encoding=encoding,
            range_safe=False,
        )
        fused, _ = arn.fuse(plain, encoding=encoding, range_safe=False)
        safe, _ = arn.fuse(plain, encoding=encoding)
        for model, is_safe in ((converted, False), (fused, False), (safe, True)):
            subgraph = flatbuffer.read(bytes(model)).subgraphs[-1]
            self.assertLen(subgraph.operators, 12 if is_safe else 6)
            self.assertEqual(model.rms_norm_ops()[0].epsilon, 1e-3)

    def test_operators_by_index(self):
        """Only what keeps the indices of operators may be written."""
        model = flatbuffer.read(norm())
        edit.set_metadata(model, "model_control_dependencies", b"\0")
        content = flatbuffer.to_bytes(model)
        for target in ("custom", "ml_drift", "composite"):
            self.assertLen(
                arn.find_ops(flatbuffer.read(arn.translate(content, target))), 1
            )
        with self.assertRaisesRegex(ValueError, "model_control_dependencies"):
            arn.translate(content, "decomposed")

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
            found[name] = [node.encoding.value for node in model.rms_norm_ops()]
        self.assertEqual(found, {"plain": ["stablehlo_custom_call"], "scaled": []})

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


class CompositeTest(parameterized.TestCase):
    """Composites that are not the RMSNorm of their operands."""

    def _check(self, b, reason):
        model, report = arn.fuse(flatbuffer.to_bytes(b.model))
        self.assertEmpty(report.fused)
        self.assertRegex(report.skipped[0].reason, reason)
        self.assertEmpty(model.rms_norm_ops())

    def _builder(self, shape, **kwargs):
        b = Builder()
        x = b.input(shape, **kwargs)
        weight = b.constant(np.ones(16))
        y = b.tensor(shape, **kwargs)
        b.subgraph.outputs = [y]
        return b, [x, weight], [y]

    def test_another_shape_signature(self):
        b, inputs, outputs = self._builder((1, 16), signature=[-1, 16])
        b.composite(inputs, outputs, corpus.decomposition(b, (1, 16)), 1e-3)
        self._check(b, r"input 0 is float32 \[-1, 16\]")

    def test_another_epsilon(self):
        b, inputs, outputs = self._builder((2, 16))
        b.composite(inputs, outputs, corpus.decomposition(b, (2, 16)), 1.00001e-3)
        self._check(b, "its epsilon is 0.001")

    def test_another_weight(self):
        """The inside multiplies by a constant of its own."""
        b, inputs, outputs = self._builder((2, 16))
        index = corpus.decomposition(b, (2, 16))
        inside = b.model.subgraphs[index]
        inside.inputs = inside.inputs[:1]
        data = np.frombuffer(np.full(16, 2, np.float32).tobytes(), np.uint8)
        inside.tensors[1].buffer = edit.append_buffer(b.model, data)
        b.composite(inputs[:1], outputs, index, 1e-3)
        self._check(b, "its weight is not an input")

    def test_weight_of_ones_inside(self):
        b, inputs, outputs = self._builder((2, 16))
        index = corpus.decomposition(b, (2, 16))
        inside = b.model.subgraphs[index]
        inside.inputs = inside.inputs[:1]
        data = np.frombuffer(np.ones(16, np.float32).tobytes(), np.uint8)
        inside.tensors[1].buffer = edit.append_buffer(b.model, data)
        b.composite(inputs[:1], outputs, index, 1e-3)
        _, report = arn.fuse(flatbuffer.to_bytes(b.model))
        self.assertEqual([f.has_weight for f in report.fused], [False])

    @parameterized.parameters(True, False)
    def test_itself(self, directly):
        """To run such a decomposition would never end."""
        b, inputs, outputs = self._builder((2, 16))
        index = corpus.decomposition(b, (2, 16))
        other = corpus.decomposition(b, (2, 16))
        b.composite(inputs, outputs, index, 1e-3)
        reference = b.subgraph.operators[-1]
        for subgraph, target in ((index, index if directly else other), (other, index)):
            operator = copy.deepcopy(reference)
            operator.inputs = list(b.model.subgraphs[subgraph].inputs)
            operator.outputs = list(b.model.subgraphs[subgraph].outputs)
            operator.builtinOptions2.decompositionSubgraphIndex = target
            b.model.subgraphs[subgraph].operators = [operator]
        content = flatbuffer.to_bytes(b.model)
        with self.assertRaisesRegex(ValueError, "calls itself"):
            arn.fuse(content)
        with self.assertRaisesRegex(ValueError, "calls itself"):
            arn.Interpreter(model_content=content)

    def test_without_weight(self):
        """One of somebody else gets one of ones, which vendors' parsers read."""
        (case,) = (c for c in pattern_cases.NORMS if c.name == "no_weight")
        content = case.composite()
        model, report = arn.fuse(content, encoding="composite")
        self.assertLen(report.fused, 1)
        self.assertEqual(bytes(arn.Model(content).translate("composite")), bytes(model))
        (norm,) = model.rms_norm_ops()
        self.assertLen(norm.inputs, 2)
        self.assertEqual(
            bytes(model.translate("custom")), arn.translate(content, "custom")
        )
        # Then there is nothing left to do.
        self.assertEqual(bytes(model.translate("composite")), bytes(model))

    def test_unknown_attribute(self):
        """To ignore it could change the result."""
        b, inputs, outputs = self._builder((2, 16))
        b.composite(inputs, outputs, corpus.decomposition(b, (2, 16)), 1e-3)
        options = b.subgraph.operators[-1].builtinOptions2
        attributes = flexbuffers.Dumps({"epsilon": 1e-3, "axis": 1})
        options.compositeAttributes = np.frombuffer(attributes, np.uint8)
        self._check(b, "unknown key 'axis'")

    def test_more_inside(self):
        b, inputs, outputs = self._builder((2, 16))
        index = corpus.decomposition(b, (2, 16))
        b.composite(inputs, outputs, index, 1e-3)
        main, b.subgraph = b.subgraph, b.model.subgraphs[index]
        b.subgraph.outputs = [b("ABS", b.subgraph.outputs[0])]
        b.subgraph = main
        self._check(b, r"it computes more, in operator 6 \(ABS\)")

    def test_unknown_operands(self):
        b, inputs, outputs = self._builder((2, 16))
        b.composite([inputs[0], -1], outputs, corpus.decomposition(b, (2, 16)), 1e-3)
        self._check(b, "inputs")


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
        for name in (path, os.fsencode(path)):
            with self.assertRaisesRegex(ValueError, "^/.*damaged.tflite is "):
                arn.Interpreter(model_path=name)

    def test_paths_of_bytes(self):
        """On Linux a name may be any bytes, UTF-8 or not."""
        folder = os.fsencode(self.create_tempdir().full_path)
        path = os.path.join(folder, b"\xff.tflite")
        arn.Model(norm()).export(path)
        self.assertEqual(bytes(arn.Model.load(path)), norm())
        interpreter = arn.Interpreter(model_path=path)
        self.assertIn("serving_default", interpreter.get_signature_list())
        # Without custom calls the runtime opens the file itself.
        arn.Model(arn.translate(norm(), "custom")).export(path)
        interpreter = arn.Interpreter(model_path=path)
        self.assertIn("serving_default", interpreter.get_signature_list())
        pathlib.Path(os.fsdecode(path)).write_bytes(b"no model")
        with self.assertRaisesRegex(ValueError, ".tflite is not a .tflite"):
            arn.Model.load(path)

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
