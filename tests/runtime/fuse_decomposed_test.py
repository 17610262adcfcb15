"""The delegate's option fuse_decomposed: decomposed norms at run time."""

import numpy as np
from absl.testing import absltest, parameterized
from ai_edge_litert import interpreter as litert

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.tflite import flatbuffer
from testing.tflite_builder import Builder
from tests.pattern_cases import (
    EPSILON,
    NORMS,
    SIZE,
    WEIGHT,
    circle_graph,
    if_graph,
    norm_graph,
)


def _random(*shape, dtype=np.float32):
    x = np.random.default_rng(0).standard_normal(shape)
    return (0.03 * x).astype(dtype)  # So small that epsilon matters.


def _set_up(content: bytes, *inputs, fused=True) -> litert.Interpreter:
    # Without XNNPACK a delegate in the plan is ours.
    resolver = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    kind, options = litert.Interpreter, {}
    if fused:
        kind, options = arn.Interpreter, {"fuse_decomposed": True}
    interpreter = kind(
        model_content=content, experimental_op_resolver_type=resolver, **options
    )
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.resize_tensor_input(detail["index"], value.shape)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return interpreter


def _outputs(interpreter: litert.Interpreter) -> list[np.ndarray]:
    details = interpreter.get_output_details()
    return [interpreter.get_tensor(detail["index"]) for detail in details]


def _operators(interpreter: litert.Interpreter) -> list[str]:
    """Names the nodes; those that a delegate has replaced are still listed."""
    return [node["op_name"] for node in interpreter._get_ops_details()]


class FuseDecomposedTest(parameterized.TestCase):
    @parameterized.parameters(True, False)
    def test_branch(self, condition):
        content = flatbuffer.to_bytes(if_graph().model)
        inputs = np.array([condition]), _random(2, SIZE)
        (expected,) = _outputs(_set_up(content, *inputs, fused=False))
        (actual,) = _outputs(_set_up(content, *inputs))
        np.testing.assert_allclose(actual, expected, rtol=4e-6, atol=1e-7)

    def _check(self, content, *inputs, delegated=1, rtol=4e-6):
        fused = _set_up(content, *inputs)
        names = _operators(fused)
        self.assertEqual(names.count("DELEGATE"), delegated, names)
        expected = _outputs(_set_up(content, *inputs, fused=False))
        for actual, value in zip(_outputs(fused), expected, strict=True):
            np.testing.assert_allclose(actual, value, rtol=rtol, atol=1e-7)

    @parameterized.parameters((0, 0), (1, 0), (2, 0), (3, 0), (4, 1))
    def test_intermediate_used_elsewhere(self, index, delegated):
        """By another operator: only the normalized x may be, without the weight."""
        graph, y = norm_graph()
        tensor = graph.subgraph.operators[index].outputs[0]
        content = graph.content(graph("ADD", y, tensor))
        self._check(content, _random(2, 3, SIZE), delegated=delegated)

    def test_intermediate_used_by_another_norm(self):
        """Both are claimed, so the partition alone would not tell."""
        graph, y = norm_graph()
        inverse = graph.subgraph.operators[3].outputs[0]
        y2 = graph("MUL", graph.subgraph.inputs[0], inverse)
        self._check(graph.content(y, y2), _random(2, 3, SIZE), delegated=0)

    def test_computed_weight(self):
        """It stays a MUL: in the plan it may come after the norm's other nodes."""
        graph, y = norm_graph(has_weight=False)
        w = graph.input((SIZE,))
        content = graph.content(graph("MUL", y, graph("ADD", w, w)))
        self._check(content, _random(2, 3, SIZE), WEIGHT)

    def test_adjacent_norms(self):
        """Two chains in one partition, with the tensor between them inside."""
        graph, y = norm_graph()
        mean = graph(
            "MEAN", graph("MUL", y, y), graph.constant([2], np.int32), shape=(2, 3, 1)
        )
        inverse = graph("RSQRT", graph("ADD", mean, graph.constant(0.5)))
        z = graph("MUL", graph.constant(WEIGHT), graph("MUL", y, inverse))
        x = _random(2, 3, SIZE)
        self._check(graph.content(z), x)
        self._check(graph.content(z, y), x)

    def test_half_precision(self):
        g = Builder()
        x = g.input((2, SIZE), np.float16)
        wide = g("CAST", x, dtype=np.float32)
        mean = g("MEAN", g("MUL", wide, wide), g.constant([1], np.int32), shape=(2, 1))
        inverse = g("RSQRT", g("ADD", mean, g.constant(EPSILON)))
        y = g(
            "CAST",
            g("MUL", g("MUL", wide, inverse), g.constant(WEIGHT)),
            dtype=np.float16,
        )
        self._check(g.content(y), _random(2, SIZE, dtype=np.float16), rtol=1e-3)

    @parameterized.parameters(False, True)
    def test_half_precision_inside_of_a_graph(self, used_elsewhere):
        """The runtime gives x's memory to others after the CAST that reads it."""
        g, shape = Builder(), (4, 256)
        x = g.input(shape)
        narrow = g("CAST", g("ADD", x, x), shape=shape, dtype=np.float16)
        wide = g("CAST", narrow, dtype=np.float32)
        turned = g("REVERSE_V2", wide, g.constant([1], np.int32), shape=shape)
        other = turned if used_elsewhere else x
        other = g("REVERSE_V2", other, g.constant([0], np.int32), shape=shape)
        mean = g("MEAN", g("MUL", wide, wide), g.constant([1], np.int32), shape=(4, 1))
        inverse = g("RSQRT", g("ADD", mean, g.constant(EPSILON)))
        y = g("CAST", g("MUL", wide, inverse), dtype=np.float16)
        self._check(g.content(y, other), _random(*shape), rtol=2e-3)

    @parameterized.parameters("range_safe", "rsqrt")
    def test_composite_of_a_scalar_weight(self, name):
        """The runtime broadcasts it inside, where no kernel may take the norm."""
        (case,) = (case for case in NORMS if case.name == name)
        model = flatbuffer.read(case.composite())
        operator = model.subgraphs[0].operators[0]
        weight = model.subgraphs[0].tensors[operator.inputs[1]]
        weight.shape = []
        model.buffers[weight.buffer].data = np.frombuffer(
            np.float32(3).tobytes(), np.uint8
        )
        content = flatbuffer.to_bytes(model)
        self._check(content, _random(2, 3, SIZE), delegated=0)

    @parameterized.parameters(1, 2)
    def test_nodes_in_a_circle(self, length):
        g = Builder()
        g.input((2, SIZE))
        start = index = g.tensor((2, SIZE))
        for _ in range(length):
            index = g("EXPAND_DIMS", index, g.constant(0, np.int32), shape=(2, SIZE))
        g.subgraph.operators[-1].outputs = [start]
        content = g.content(g("RSQRT", start))
        # The runtime refuses it while it prepares the nodes.
        with self.assertRaises(RuntimeError):
            _set_up(content, _random(2, SIZE))

    def test_nodes_in_a_circle_behind_the_root(self):
        with self.assertRaises((RuntimeError, ValueError)):
            _set_up(circle_graph(), _random(2, 3, SIZE))

    def test_statistic_of_other_rows(self):
        """At axis 0, which only rows of 1, as before resizing, make look right."""
        g = Builder()
        x = g.input((1, 1, SIZE), signature=[-1, 1, SIZE])
        mean = g("MEAN", g("MUL", x, x), g.constant([2], np.int32), shape=(1, 1))
        inverse = g("RSQRT", g("ADD", mean, g.constant(EPSILON)))
        turned = g("EXPAND_DIMS", inverse, g.constant(0, np.int32), shape=(1, 1, 1))
        y = g("MUL", x, turned)
        for tensor in g.subgraph.tensors:
            if tensor.buffer == 0:
                tensor.shapeSignature = [-1, *tensor.shape[1:]]
        g.subgraph.tensors[turned].shapeSignature = [1, -1, 1]
        g.subgraph.tensors[y].shapeSignature = [-1, -1, SIZE]
        self._check(g.content(y), _random(3, 1, SIZE), delegated=0)

    def test_dynamic_rows(self):
        graph, y = norm_graph(signature=[-1, 3, SIZE])
        self._check(graph.content(y), _random(7, 3, SIZE))

    def test_beside_xnnpack(self):
        graph, y = norm_graph()
        matrix = graph.constant(_random(SIZE, SIZE))
        z = graph("FULLY_CONNECTED", y, matrix, -1, shape=(6, SIZE))
        content = graph.content(z)
        x = _random(2, 3, SIZE)
        results = []
        for kind, options in (
            (litert.Interpreter, {}),
            (arn.Interpreter, {"fuse_decomposed": True}),
        ):
            interpreter = kind(model_content=content, **options)
            interpreter.allocate_tensors()
            interpreter.set_tensor(0, x)
            interpreter.invoke()
            results += _outputs(interpreter)
        np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-6)

    def test_off_by_default(self):
        graph, y = norm_graph()
        interpreter = arn.Interpreter(
            model_content=graph.content(y),
            experimental_op_resolver_type=(
                litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
        )
        interpreter.allocate_tensors()
        self.assertNotIn("DELEGATE", _operators(interpreter))

    @parameterized.parameters("2", "-1", "yes", "")
    def test_bad_value(self, value):
        with self.assertRaisesRegex(
            ValueError, f'fuse_decomposed must be an integer from 0 to 1, got "{value}"'
        ):
            litert.load_delegate(arn.delegate_path(), {"fuse_decomposed": value})


if __name__ == "__main__":
    absltest.main()
