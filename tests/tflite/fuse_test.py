"""RMSNorm in finished files: what converters write, and what must not be taken."""

import copy
import os
import pathlib
import subprocess
import sys

import litert_torch
import numpy as np
import torch
from absl.testing import absltest, parameterized
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers
from litert_torch.backend import composite
from litert_torch.generative.layers import normalization
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.llama import modeling_llama

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.tflite import edit, flatbuffer
from testing.tflite_builder import Builder
from tests import pattern_cases
from tests.pattern_cases import (
    EPSILON,
    SIZE,
    WEIGHT,
    circle_graph,
    if_graph,
    norm_graph,
)

_OP = schema.BuiltinOperator


def run(content: bytes, *inputs, fused=False):
    """Returns the outputs of the first subgraph on inputs."""
    kind = arn.Interpreter if fused else litert.Interpreter
    interpreter = kind(model_content=content)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [
        interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()
    ]


def random(*shape, seed=0, dtype=np.float32):
    x = np.random.default_rng(seed).standard_normal(shape)
    return (0.03 * x).astype(dtype)  # So small that epsilon matters.


def operators(content: bytes) -> list[str]:
    model = flatbuffer.read(content)
    names = {v: k for k, v in vars(_OP).items() if k.isupper()}
    return [
        names[model.operatorCodes[operator.opcodeIndex].builtinCode]
        for subgraph in model.subgraphs
        for operator in subgraph.operators
    ]


class Sqrt(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(SIZE))

    def forward(self, x):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * self.weight


class Block(torch.nn.Module):
    """Norms among matrix products, large enough that weights are not packed."""

    def __init__(self, size=48):
        super().__init__()
        self.a = torch.nn.RMSNorm(size, eps=1e-5)
        self.b = torch.nn.RMSNorm(size, eps=1e-6)
        self.linear = torch.nn.Linear(size, size)

    def forward(self, x):
        return x + self.b(torch.nn.functional.silu(self.linear(self.a(x))))


def randomized(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.eval()


class ConverterTest(parameterized.TestCase):
    """Chains that litert-torch writes."""

    @parameterized.named_parameters(
        ("torch", lambda: torch.nn.RMSNorm(SIZE, eps=1e-5), 1e-5),
        ("generative", lambda: normalization.RMSNorm(SIZE), 1e-6),
        (
            "zero_centered",
            lambda: normalization.RMSNorm(SIZE, zero_centered_gamma=True),
            1e-6,
        ),
        ("llama", lambda: modeling_llama.LlamaRMSNorm(SIZE, eps=1e-5), 1e-5),
        ("gemma3", lambda: modeling_gemma3.Gemma3RMSNorm(SIZE), 1e-6),
        ("gemma4", lambda: modeling_gemma4.Gemma4RMSNorm(SIZE), 1e-6),
        ("sqrt", Sqrt, 1e-5),
        ("llama_half", lambda: modeling_llama.LlamaRMSNorm(SIZE).half(), 1e-6),
        ("gemma3_half", lambda: modeling_gemma3.Gemma3RMSNorm(SIZE).half(), 1e-6),
    )
    def test_one_norm_is_one_operator(self, make, epsilon):
        module = randomized(make())
        dtype = next(module.parameters()).dtype
        x = torch.from_numpy(random(2, 3, SIZE)).to(dtype)
        content = litert_torch.convert(module, (x,)).model_content()
        model, report = arn.fuse(content, encoding="custom")
        self.assertEqual(operators(bytes(model)), ["CUSTOM"])
        (node,) = model.rms_norm_ops()
        self.assertEqual(node.epsilon, epsilon)
        self.assertLen(node.inputs, 2)
        (fused,) = report.fused
        self.assertEqual((fused.epsilon, fused.hidden_size), (epsilon, SIZE))
        self.assertTrue(fused.has_weight)
        self.assertEqual(report.operators_before, len(operators(content)))
        self.assertEqual(report.operators_after, 1)
        with torch.no_grad():
            expected = module(x).float().numpy()
        # In half precision, torch rounds in between.
        tolerance = 4e-6 if dtype == torch.float32 else 2e-3
        np.testing.assert_allclose(
            model(x.numpy()).astype(np.float32), expected, rtol=tolerance, atol=1e-6
        )

    def test_scale_less_and_second_scale(self):
        for module, has_weight, left in (
            (modeling_gemma4.Gemma4RMSNorm(SIZE, with_scale=False), False, []),
            (normalization.RMSNorm(SIZE, with_scale=True), True, ["MUL"]),
        ):
            x = torch.from_numpy(random(2, SIZE))
            module = randomized(module)
            content = litert_torch.convert(module, (x,)).model_content()
            model, report = arn.fuse(content)
            self.assertEqual(operators(bytes(model)), ["CUSTOM", *left])
            self.assertEqual([f.has_weight for f in report.fused], [has_weight])
            np.testing.assert_allclose(
                model(x.numpy()), module(x).detach().numpy(), rtol=4e-6, atol=1e-6
            )

    @parameterized.parameters(*arn.Encoding)
    def test_everything_else_is_kept(self, encoding):
        module = randomized(Block())
        x = torch.from_numpy(random(5, 48))
        content = (
            litert_torch.signature("prefill", module, (x,))
            .signature("decode", module, (x[:1],))
            .convert()
            .model_content()
        )
        model, report = arn.fuse(content, encoding=encoding)
        self.assertLen(report.fused, 4)
        self.assertEqual({f.subgraph for f in report.fused}, {0, 1})
        self.assertEqual([n.encoding for n in model.rms_norm_ops()], [encoding] * 4)
        before, after = flatbuffer.read(content), flatbuffer.read(bytes(model))
        taken = {(f.subgraph, o) for f in report.fused for o in f.operators}

        def described(m, s, o):
            """An operator with its tensors as names, types, shapes and content."""
            operator = m.subgraphs[s].operators[o]
            tensors = [
                (t.name, t.type, t.shape.tolist(), m.buffers[t.buffer].data)
                for t in (
                    m.subgraphs[s].tensors[i]
                    for i in (*operator.inputs, *operator.outputs)
                )
            ]
            code = m.operatorCodes[operator.opcodeIndex]
            options = operator.builtinOptions
            return (
                code.builtinCode,
                code.version,
                None if options is None else vars(options),
                [(*t[:3], None if t[3] is None else t[3].tobytes()) for t in tensors],
            )

        ours = {(n.subgraph, o) for n in model.rms_norm_ops() for o in n.operators}
        for s in (0, 1):
            left = [
                described(before, s, o)
                for o in range(len(before.subgraphs[s].operators))
                if (s, o) not in taken
            ]
            kept = [
                described(after, s, o)
                for o in range(len(after.subgraphs[s].operators))
                if (s, o) not in ours
            ]
            self.assertEqual(kept, left)
            self.assertEqual(
                *(
                    [m.subgraphs[s].tensors[i].name for i in m.subgraphs[s].outputs]
                    for m in (before, after)
                )
            )
        self.assertEqual(
            [s.signatureKey for s in after.signatureDefs],
            [s.signatureKey for s in before.signatureDefs],
        )
        for name, value in (("prefill", x), ("decode", x[:1])):
            runner = litert.Interpreter(model_content=content).get_signature_runner(
                name
            )
            (expected,) = runner(args_0=value.numpy()).values()
            np.testing.assert_allclose(
                model(value.numpy(), signature_name=name),
                expected,
                rtol=1e-4,
                atol=1e-4,
            )
        again, nothing = arn.fuse(bytes(model), encoding=encoding)
        self.assertEmpty(nothing.fused if encoding != "composite" else ())
        self.assertEqual(bytes(again), bytes(model))

    def test_composites(self):
        plain = normalization.RMSNorm(SIZE, enable_hlfb=True)
        scaled = normalization.RMSNorm(
            SIZE, with_scale=True, scale_shift=3.0, enable_hlfb=True
        )
        module = randomized(torch.nn.Sequential(plain, scaled))
        x = torch.from_numpy(random(2, SIZE))
        content = litert_torch.convert(module, (x,)).model_content()
        model, report = arn.fuse(content)
        self.assertEqual([f.source for f in report.fused], ["composite"])
        (skipped,) = report.skipped
        self.assertIn("is something else", skipped.reason)
        self.assertEqual([n.encoding.value for n in model.rms_norm_ops()], ["custom"])
        np.testing.assert_allclose(
            model(x.numpy()), module(x).detach().numpy(), rtol=1e-5, atol=1e-5
        )

    @parameterized.parameters("custom", "stablehlo_custom_call", "composite")
    def test_inside_of_a_composite(self, encoding):
        class Block(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = arn.RMSNorm(SIZE, eps=1e-5)

            def forward(self, x):
                builder = composite.StableHLOCompositeBuilder("vendor.block")
                x = builder.mark_inputs(x)
                return builder.mark_outputs(self.norm(x) + x)

        module = randomized(Block())
        x = torch.from_numpy(random(2, SIZE))
        model = arn.convert(module, (x,), encoding=encoding)
        self.assertLen(model.rms_norm_ops(), 1)
        np.testing.assert_allclose(
            model(x.numpy()), module(x).detach().numpy(), rtol=1e-5, atol=1e-6
        )

    @parameterized.parameters(True, False)
    def test_branch(self, condition):
        content = flatbuffer.to_bytes(if_graph().model)
        fused, report = arn.fuse(content)
        self.assertEqual([f.subgraph for f in report.fused], [1])
        inputs = np.array([condition]), random(2, SIZE)
        (expected,) = run(content, *inputs)
        (actual,) = run(bytes(fused), *inputs, fused=True)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)

    def test_composite_of_somebody_else(self):
        module = torch.nn.Sequential(
            normalization.RMSNorm(SIZE, enable_hlfb=True), torch.nn.RMSNorm(SIZE)
        )
        x = torch.from_numpy(random(2, SIZE))
        tree = flatbuffer.read(litert_torch.convert(module, (x,)).model_content())
        (options,) = (
            operator.builtinOptions2
            for operator in tree.subgraphs[0].operators
            if isinstance(operator.builtinOptions2, schema.StableHLOCompositeOptionsT)
        )
        options.compositeAttributes = None
        model, report = arn.fuse(flatbuffer.to_bytes(tree))
        self.assertLen(report.fused, 1)
        (skipped,) = report.skipped
        self.assertIn("must be a map with the one key", skipped.reason)
        self.assertLen(model.rms_norm_ops(), 1)

    def test_composites_with_one_decomposition(self):
        """One is fused, the other, of somebody else, still needs it."""
        x = torch.from_numpy(random(2, SIZE))
        module = torch.nn.Sequential(normalization.RMSNorm(SIZE, enable_hlfb=True))
        tree = flatbuffer.read(litert_torch.convert(module, (x,)).model_content())
        (main, _), tree.signatureDefs = tree.subgraphs, None
        (first,) = main.operators
        second = copy.deepcopy(first)
        second.builtinOptions2.compositeAttributes = np.frombuffer(
            flexbuffers.Dumps({"variance_epsilon": 1e-6}), np.uint8
        )
        main.tensors.append(copy.deepcopy(main.tensors[int(first.outputs[0])]))
        second.outputs = [len(main.tensors) - 1]
        main.operators.append(second)
        main.outputs = [*main.outputs, *second.outputs]
        content = flatbuffer.to_bytes(tree)
        model, report = arn.fuse(content)
        self.assertLen(report.fused, 1)
        for actual, expected in zip(
            run(bytes(model), x.numpy(), fused=True),
            run(content, x.numpy()),
            strict=True,
        ):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


class ChainTest(parameterized.TestCase):
    """Chains as TensorFlow, Keras and onnx2tf write them: what is left of them."""

    @parameterized.named_parameters(
        ("rsqrt", [], 3, 2),
        ("pow_2", [], 3, 2),
        # With a constant that nothing has read before either.
        ("weight_with_dimensions", [], 4, 3),
        ("weight_dequantized_with_dimensions", ["DEQUANTIZE"], 5, 3),
        ("weight_reshaped", [], 3, 2),
        ("statistic_expanded", [], 3, 2),
        ("float16", [], 3, 2),
        ("range_safe", [], 3, 2),
    )
    def test_nothing_stays_behind(self, left, tensors, buffers):
        name = self._testMethodName.removeprefix("test_nothing_stays_behind_")
        (case,) = (c for c in pattern_cases.NORMS if c.name == name)
        model, _ = arn.fuse(case.chain())
        self.assertEqual(operators(bytes(model)), [*left, "CUSTOM"])
        tree = flatbuffer.read(bytes(model))
        self.assertLen(tree.subgraphs[0].tensors, tensors)
        self.assertLen(tree.buffers, buffers)

    def test_leading_dimension(self):
        """litert-torch leaves leading ones out before a broadcast."""
        b = Builder()
        flat = b.input((2, 3, SIZE))
        x = b.reshape(flat, (1, 2, 3, SIZE))
        mean = b.reduce("MEAN", b("MUL", flat, x))
        inverse = b("RSQRT", b("ADD", mean, b.constant(EPSILON)))
        content = b.content(b("MUL", b("MUL", x, inverse), b.constant(WEIGHT)))
        model, report = arn.fuse(content)
        self.assertLen(report.fused, 1)
        self.assertEqual(operators(bytes(model)), ["RESHAPE", "CUSTOM"])
        value = random(2, 3, SIZE)
        np.testing.assert_allclose(
            run(bytes(model), value, fused=True)[0], run(content, value)[0], rtol=4e-6
        )

    def test_signature_of_an_intermediate(self):
        """It is an output then, although the subgraph does not say so."""
        graph, y = norm_graph()
        mean = graph.subgraph.operators[1].outputs[0]
        graph.serve({"x": 0}, {"y": y, "m": mean})
        content = graph.content(y)
        model, report = arn.fuse(content)
        self.assertEmpty(report.fused)
        self.assertIn("is an output of the graph", report.skipped[0].reason)
        self.assertEqual(operators(bytes(model)), operators(content))

    def test_dynamic_rows(self):
        graph, y = norm_graph(signature=[-1, 3, SIZE])
        model, report = arn.fuse(graph.content(y))
        self.assertLen(report.fused, 1)
        interpreter = arn.Interpreter(model_content=bytes(model))
        interpreter.resize_tensor_input(0, (7, 3, SIZE))
        interpreter.allocate_tensors()
        x = random(7, 3, SIZE)
        interpreter.set_tensor(0, x)
        interpreter.invoke()
        y = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        expected = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + EPSILON) * WEIGHT
        np.testing.assert_allclose(y, expected, rtol=4e-6)

    def test_shared_statistic_stays_one(self):
        """Two weights for one x: the norm is fused once, without either."""
        graph, y = norm_graph(has_weight=False)
        first = graph("MUL", y, graph.constant(WEIGHT))
        second = graph("MUL", y, graph.constant(2 * WEIGHT))
        content = graph.content(first, second)
        model, report = arn.fuse(content)
        self.assertEqual(operators(bytes(model)), ["CUSTOM", "MUL", "MUL"])
        self.assertFalse(report.fused[0].has_weight)
        x = random(2, 3, SIZE)
        for actual, expected in zip(
            run(bytes(model), x, fused=True), run(content, x), strict=True
        ):
            np.testing.assert_allclose(actual, expected, rtol=4e-6)

    def test_shared_constant_stays(self):
        """A weight that another operator adds."""
        graph, y = norm_graph()
        tensors = graph.subgraph.tensors
        weight = next(
            i for i, t in enumerate(tensors) if t.buffer and t.shape == [SIZE]
        )
        total = graph("ADD", y, weight)
        content = graph.content(total)
        model, report = arn.fuse(content)
        self.assertLen(report.fused, 1)
        self.assertEqual(operators(bytes(model)), ["CUSTOM", "ADD"])
        x = random(2, 3, SIZE)
        # The norm and the weight may cancel.
        np.testing.assert_allclose(
            run(bytes(model), x, fused=True)[0], run(content, x)[0], 4e-6, 1e-6
        )


class RefusalTest(parameterized.TestCase):
    def test_norm_without_its_weight(self):
        """A tensor used before the weight is the output of a norm without weight."""
        graph, y = norm_graph()
        normalized = graph.subgraph.operators[4].outputs[0]
        _, report = arn.fuse(graph.content(graph("ADD", y, normalized)))
        self.assertEqual([f.has_weight for f in report.fused], [False])

    def test_rounding_to_integers(self):
        g = Builder()
        x = g.input((2, SIZE))
        mean = g("MEAN", g("MUL", x, x), g.constant([1], np.int32), shape=(2, 1))
        y = g("MUL", x, g("RSQRT", g("ADD", mean, g.constant(1e-3))))
        y = g("CAST", g("CAST", y, dtype=np.int32), dtype=np.float32)
        y = g("MUL", y, g.constant(WEIGHT))
        model, report = arn.fuse(g.content(y))
        self.assertEqual(operators(bytes(model)), ["CUSTOM", "CAST", "CAST", "MUL"])
        self.assertFalse(report.fused[0].has_weight)

    def test_dynamic_hidden_size(self):
        graph, y = norm_graph(signature=[2, 3, -1])
        _, report = arn.fuse(graph.content(y))
        self.assertIn("not static", report.skipped[0].reason)

    def test_control_dependencies(self):
        graph, y = norm_graph()
        edit.set_metadata(graph.model, "model_control_dependencies", b"\0")
        with self.assertRaisesRegex(ValueError, "model_control_dependencies"):
            arn.fuse(graph.content(y))

    @parameterized.parameters("CAST", "RESHAPE")
    def test_operators_in_a_circle(self, name):
        g = Builder()
        g.input((2, SIZE))
        before = g.tensor((2, SIZE))
        g(name, before, shape=(2, SIZE))
        g.subgraph.operators[-1].outputs = [before]
        self.assertEmpty(arn.fuse(g.content(g("RSQRT", before)))[1].fused)

    def test_operators_in_a_circle_behind_the_root(self):
        self.assertEmpty(arn.fuse(circle_graph())[1].fused)

    @parameterized.parameters("inputs", "outputs")
    def test_operator_without_operands(self, field):
        g, y = norm_graph()
        setattr(g.subgraph.operators[3], field, [])
        with self.assertRaisesRegex(ValueError, "operator 3, RSQRT, must have"):
            arn.fuse(g.content(y))

    def test_bad_input(self):
        with self.assertRaisesRegex(ValueError, "not a .tflite"):
            arn.fuse(b"nothing at all")
        with self.assertRaisesRegex(ValueError, "encoding must be one of"):
            arn.fuse(b"", encoding="nothing")
        with self.assertRaises(FileNotFoundError):
            arn.fuse("missing.tflite")


class LargeFileTest(absltest.TestCase):
    def _large(self, size, external=False) -> schema.ModelT:
        graph, y = norm_graph()
        weights = np.arange(size, dtype=np.uint8)
        columns = size // (4 * SIZE)
        matrix = graph.tensor((columns, SIZE))
        graph.subgraph.tensors[matrix].buffer = edit.append_buffer(graph.model, weights)
        if external:
            buffer = graph.model.buffers[-1]
            buffer.external, buffer.data = weights, None
            buffer.offset, buffer.size = 16, size
        lead = graph.shape(y)[:-1]
        z = graph("FULLY_CONNECTED", y, matrix, -1, shape=(np.prod(lead), columns))
        graph.subgraph.outputs = [z]
        return graph.model

    def test_memory(self):
        """Weights go from the mapped file to the new one, without a copy."""
        size = 256 << 20
        folder = pathlib.Path(self.create_tempdir().full_path)
        flatbuffer.write_file(folder / "large.tflite", self._large(size))
        # Not ru_maxrss, which begins with what this process takes.
        code = (
            "import pathlib, re, sys\n"
            "from ai_edge_rms_norm.tflite import flatbuffer, fuse\n"
            "def peak():\n"
            "    status = pathlib.Path('/proc/self/status').read_text()\n"
            "    return int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1])\n"
            "model = flatbuffer.load(sys.argv[1])\n"
            "before = peak()\n"
            "assert len(fuse.fuse_model(model).fused) == 1\n"
            "flatbuffer.write_file(sys.argv[2], model)\n"
            "print(peak() - before)\n"
        )
        paths = [folder / "large.tflite", folder / "fused.tflite"]
        result = subprocess.run(
            [sys.executable, "-c", code, *map(str, paths)],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        # The pages of the mapped file count, too; a copy would double them.
        self.assertLess(int(result.stdout) * 1024, 1.25 * size)
        self.assertLess(abs(paths[1].stat().st_size - paths[0].stat().st_size), 1 << 16)
        fused = flatbuffer.load(paths[1])
        data = max((b.data for b in fused.buffers if b.data is not None), key=len)
        np.testing.assert_array_equal(data, np.arange(size, dtype=np.uint8))
        self.assertEqual(data.ctypes.data % 16, 0)

    def test_weights_outside_the_flatbuffer(self):
        size = 1 << 16
        content = flatbuffer.to_bytes(self._large(size, external=True))
        model, report = arn.fuse(content)
        self.assertLen(report.fused, 1)
        (buffer,) = (b for b in flatbuffer.read(bytes(model)).buffers if b.offset > 1)
        self.assertEqual(buffer.offset % 16, 0)
        np.testing.assert_array_equal(buffer.external, np.arange(size, dtype=np.uint8))

    def test_too_large_for_a_flatbuffer(self):
        model = self._large(1 << 16)
        model.buffers[-1].data = np.lib.stride_tricks.as_strided(
            np.zeros(1, np.uint8), (2**31,), (0,)
        )
        with self.assertRaisesRegex(ValueError, "at most 2147483647 bytes"):
            flatbuffer.to_bytes(model)


if __name__ == "__main__":
    absltest.main()
