"""Runs .tflite models through LiteRT with the delegate as external delegate.

By hand: PYTHONPATH=python:. python3 kernels/tflite/rms_norm_delegate_test.py
--delegate=<librms_norm_delegate.so>
"""

import concurrent.futures
import contextlib
import ctypes
import os
import subprocess

import ml_dtypes
import numpy as np
from absl import flags
from absl.testing import absltest, parameterized
from ai_edge_litert import interpreter as litert
from flatbuffers import flexbuffers

from ai_edge_rms_norm.tflite import flatbuffer
from testing.tflite_builder import Builder

_DELEGATE = flags.DEFINE_string(
    "delegate",
    os.path.join(os.path.dirname(__file__), "librms_norm_delegate.so"),
    "Path of the delegate.",
)

# Relative error of one rounding to the type, and of the float32 kernel.
_TOLERANCE = {
    np.dtype(np.float32): 2e-6,
    np.dtype(np.float16): 2**-10,
    np.dtype(ml_dtypes.bfloat16): 2**-7,
}


def _rms_norm(x, weight=None, epsilon=1e-6):
    x = np.asarray(x, np.float64)
    y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return y if weight is None else y * np.asarray(weight, np.float64)


def _norm(g, x, *weight, epsilon=1e-6, options=None, y=None):
    """Appends the operator rms_norm."""
    y = g.like(g.subgraph.tensors[x]) if y is None else y
    if options is None:
        options = {"epsilon": epsilon}
    g.custom("ai_edge_torch.rms_norm", [x, *weight], [y], options)
    return y


def _add_norm(g, x, residual, *weight, epsilon=1e-6):
    """Appends the operator add_rms_norm; returns the sum and its norm."""
    outputs = [g.like(g.subgraph.tensors[x]) for _ in range(2)]
    options = {"epsilon": epsilon}
    g.custom("ai_edge_torch.add_rms_norm", [x, residual, *weight], outputs, options)
    return outputs


def _load_delegate(**options):
    return litert.load_delegate(
        _DELEGATE.value, {key: str(value) for key, value in options.items()}
    )


def _interpreter(model: bytes, *, delegate=None, xnnpack=True, **kwargs):
    resolver = litert.OpResolverType
    interpreter = litert.Interpreter(
        model_content=model,
        experimental_delegates=[delegate or _load_delegate()],
        experimental_op_resolver_type=resolver.AUTO
        if xnnpack
        else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        **kwargs,
    )
    interpreter.allocate_tensors()
    return interpreter


def _run(interpreter, *inputs):
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [
        interpreter.get_tensor(detail["index"])
        for detail in interpreter.get_output_details()
    ]


def _delegate_nodes(model: bytes, **options) -> list[dict]:
    delegate = _load_delegate(**options)
    details = _interpreter(model, delegate=delegate, xnnpack=False)._get_ops_details()
    return [detail for detail in details if detail["op_name"] == "DELEGATE"]


def _num_delegate_nodes(model: bytes, **options) -> int:
    return len(_delegate_nodes(model, **options))


class DelegateTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.rng = np.random.default_rng(0)

    def normal(self, *shape, dtype=np.float32):
        return self.rng.standard_normal(shape).astype(dtype)

    def assert_close(self, actual, expected):
        tolerance = _TOLERANCE[actual.dtype]
        self.assertEqual(actual.shape, expected.shape)
        np.testing.assert_allclose(
            actual.astype(np.float64), expected, rtol=tolerance, atol=tolerance / 16
        )


class CustomOpTest(DelegateTestCase):
    @parameterized.parameters(
        (1,), (640,), (1, 640), (3, 1), (2, 3, 1152), (2, 3, 4, 256), (128, 2304)
    )
    def test_graph_input_to_graph_output(self, *shape):
        weight = self.normal(shape[-1])
        graph = Builder()
        model = graph.content(_norm(graph, graph.input(shape), graph.constant(weight)))
        x = self.normal(*shape)
        (y,) = _run(_interpreter(model), x)
        self.assert_close(y, _rms_norm(x, weight))

    @parameterized.parameters(
        (np.float32, np.float32),
        (np.float16, np.float16),
        (np.float16, np.float32),
        (ml_dtypes.bfloat16, ml_dtypes.bfloat16),
        (ml_dtypes.bfloat16, np.float32),
    )
    def test_types(self, dtype, weight_dtype):
        weight = self.normal(576, dtype=weight_dtype)
        graph = Builder()
        model = graph.content(
            _norm(
                graph,
                graph.input((5, 576), dtype),
                graph.constant(weight, weight_dtype),
            )
        )
        x = self.normal(5, 576, dtype=dtype)
        (y,) = _run(_interpreter(model), x)
        self.assertEqual(y.dtype, dtype)
        self.assert_close(y, _rms_norm(x, weight))

    def test_weight_as_runtime_input(self):
        graph = Builder()
        model = graph.content(_norm(graph, graph.input((4, 8)), graph.input((8,))))
        x, weight = self.normal(4, 8), self.normal(8)
        (y,) = _run(_interpreter(model), x, weight)
        self.assert_close(y, _rms_norm(x, weight))

    @parameterized.parameters(((),), ((-1,),))
    def test_without_weight(self, weight):
        graph = Builder()
        model = graph.content(_norm(graph, graph.input((4, 8)), *weight))
        x = self.normal(4, 8)
        (y,) = _run(_interpreter(model), x)
        self.assert_close(y, _rms_norm(x))

    def test_adjacent_norms_with_different_epsilons(self):
        weights = [self.normal(64) for _ in range(3)]
        graph = Builder()
        x = graph.input((7, 64))
        first = _norm(graph, x, graph.constant(weights[0]), epsilon=1e-6)
        second = _norm(graph, first, graph.constant(weights[1]), epsilon=0.25)
        third = _norm(graph, first, graph.constant(weights[2]), epsilon=3.0)
        last = _norm(graph, third)
        model = graph.content(second, last)
        value = self.normal(7, 64)
        interpreter = _interpreter(model)
        for _ in range(2):
            y = _run(interpreter, value)
            expected = _rms_norm(value, weights[0], 1e-6)
            self.assert_close(y[0], _rms_norm(expected, weights[1], 0.25))
            self.assert_close(y[1], _rms_norm(_rms_norm(expected, weights[2], 3.0)))

    def test_between_operators_of_the_runtime(self):
        weight, matrix = self.normal(32), self.normal(32, 32)
        graph = Builder()
        x = graph.input((6, 32))
        doubled = graph("ADD", x, x)
        normalized = _norm(graph, doubled, graph.constant(weight))
        product = graph(
            "FULLY_CONNECTED",
            normalized,
            graph.constant(matrix),
            -1,
            shape=(6, 32),
            keepNumDims=True,
        )
        model = graph.content(_norm(graph, graph("ADD", product, normalized)))
        value = self.normal(6, 32)
        expected = _rms_norm(2 * value.astype(np.float64), weight)
        expected = _rms_norm(expected @ matrix.T.astype(np.float64) + expected)
        for xnnpack in (False, True):
            (y,) = _run(_interpreter(model, xnnpack=xnnpack), value)
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)

    @parameterized.parameters(("sum", "y"), ("sum",), ("y",))
    def test_add_rms_norm(self, *outputs):
        weight = self.normal(640)
        graph = Builder()
        x, residual = graph.input((5, 640)), graph.input((5, 640))
        results = _add_norm(graph, x, residual, graph.constant(weight), epsilon=1e-5)
        named = dict(zip(("sum", "y"), results, strict=True))
        model = graph.content(*(named[name] for name in outputs))
        a, b = self.normal(5, 640), self.normal(5, 640)
        expected = {"sum": a + b, "y": _rms_norm(a + b, weight, 1e-5)}
        values = _run(_interpreter(model), a, b)
        for name, value in zip(outputs, values, strict=True):
            self.assert_close(value, expected[name])

    def test_chain_of_residual_blocks(self):
        # Every partition keeps tensors of its own; nothing may overlap.
        graph = Builder()
        x = stream = graph.input((3, 128))
        for i in range(12):
            stream, y = _add_norm(graph, stream, x, epsilon=10.0 ** -(i % 7))
            x = y if i % 3 else graph("MUL", y, stream)
        model = graph.content(x)
        value = self.normal(3, 128)
        expected_x = expected_stream = value.astype(np.float64)
        for i in range(12):
            expected_stream = expected_stream + expected_x
            expected_x = _rms_norm(expected_stream, None, 10.0 ** -(i % 7))
            if i % 3 == 0:
                expected_x = expected_x * expected_stream
        (y,) = _run(_interpreter(model), value)
        np.testing.assert_allclose(y, expected_x, rtol=1e-4, atol=1e-4)

    def test_epsilon_is_not_rounded_to_float32(self):
        # Below the smallest float32, yet all there is under the square root.
        epsilon = 1e-60
        graph = Builder()
        model = graph.content(_norm(graph, graph.input((1, 4)), epsilon=epsilon))
        (y,) = _run(_interpreter(model), np.full((1, 4), 1e-30, np.float32))
        self.assert_close(y, _rms_norm(np.full((1, 4), 1e-30), None, epsilon))

    @parameterized.parameters(1, 2)
    def test_threads(self, num_threads):
        graph = Builder()
        model = graph.content(_norm(graph, graph.input((512, 1024))))
        x = self.normal(512, 1024)
        expected = _run(_interpreter(model, num_threads=1), x)[0]
        for interpreter in (
            _interpreter(model, num_threads=num_threads),
            _interpreter(model, delegate=_load_delegate(num_threads=num_threads)),
        ):
            np.testing.assert_array_equal(_run(interpreter, x)[0], expected)

    def test_interpreters_in_several_threads_share_a_delegate(self):
        graph = Builder()
        x = graph.input((256, 512))
        model = graph.content(_norm(graph, _norm(graph, x, epsilon=0.5)))
        delegate = _load_delegate(num_threads=2)
        values = [self.normal(256, 512) for _ in range(4)]

        def run(value):
            interpreter = _interpreter(model, delegate=delegate)
            return [_run(interpreter, value)[0] for _ in range(50)]

        with concurrent.futures.ThreadPoolExecutor(4) as executor:
            results = list(executor.map(run, values))
        for value, outputs in zip(values, results, strict=True):
            for output in outputs:
                self.assert_close(output, _rms_norm(_rms_norm(value, None, 0.5)))

    def test_signatures(self):
        weights = [self.normal(16), self.normal(24)]
        graph = Builder()
        for i, (name, weight) in enumerate(zip(("a", "b"), weights, strict=True)):
            inside = graph.branch(name.encode()) if i else contextlib.nullcontext()
            with inside:
                x = graph.input((i + 1, weight.size))
                y = _norm(graph, x, graph.constant(weight), epsilon=i + 1)
                y = _norm(graph, y)
                graph.subgraph.outputs = [y]
                graph.serve({"x0": x}, {"y0": y}, name)
        model = flatbuffer.to_bytes(graph.model)
        interpreter = _interpreter(model)
        for i, (name, weight) in enumerate(zip(("a", "b"), weights, strict=True)):
            x = self.normal(i + 1, weight.size)
            y = interpreter.get_signature_runner(name)(x0=x)["y0"]
            self.assert_close(y, _rms_norm(_rms_norm(x, weight, i + 1)))


class DynamicShapeTest(DelegateTestCase):
    def test_resized_input(self):
        weight = self.normal(48)
        graph = Builder()
        x = graph.input((1, 1, 48), signature=[-1, -1, 48])
        stream, y = _add_norm(graph, x, x, graph.constant(weight))
        y = graph("ADD", _norm(graph, y), stream)
        model = graph.content(_norm(graph, y))
        interpreter = _interpreter(model)
        index = interpreter.get_input_details()[0]["index"]
        for shape in ((1, 1, 48), (3, 5, 48), (2, 1, 48), (0, 4, 48), (3, 5, 48)):
            interpreter.resize_tensor_input(index, shape)
            interpreter.allocate_tensors()
            x = self.normal(*shape)
            total = 2 * x.astype(np.float64)
            expected = _rms_norm(_rms_norm(_rms_norm(total, weight)) + total)
            self.assert_close(_run(interpreter, x)[0], expected)

    def test_shape_known_only_while_invoking(self):
        graph = Builder()
        x = graph.input((4, 6))
        shape = graph.input((2,), np.int32)
        reshaped = graph("RESHAPE", x, shape, shape=(1, 1), signature=(-1, -1))
        y = _norm(graph, _norm(graph, reshaped, epsilon=2.0))
        model = graph.content(graph("ADD", y, y))
        interpreter = _interpreter(model)
        for shape in ((4, 6), (2, 12), (24, 1), (1, 24)):
            x = self.normal(4, 6)
            (y,) = _run(interpreter, x, np.array(shape, np.int32))
            expected = _rms_norm(_rms_norm(x.reshape(shape), None, 2.0))
            self.assert_close(y, 2 * expected)

    def test_resize_to_another_hidden_size_than_the_weight_has(self):
        graph = Builder()
        x = graph.input((2, 8), signature=[-1, -1])
        model = graph.content(_norm(graph, x, graph.constant(np.ones(8))))
        interpreter = _interpreter(model)
        interpreter.resize_tensor_input(0, (2, 9))
        with self.assertRaisesRegex(RuntimeError, r"weight must have shape \[9\]"):
            interpreter.allocate_tensors()


def _decompose(graph, x, *weight, epsilon=1e-6, axis=-1, extra=(), act=0):
    """Appends a decomposed RMSNorm; extra: further factors."""
    square = graph("MUL", x, x)
    mean = graph.reduce("MEAN", square, axis % len(graph.shape(x)))
    shifted = graph("ADD", mean, graph.constant(np.float32(epsilon)))
    y = graph("MUL", x, graph("RSQRT", shifted))
    for factor in (*extra, *weight):
        y = graph("MUL", y, factor, activation=act)
    return y


_EPSILON = 1e-3
_SHAPE = (2, 3, 16)

# Each returns a mean of squares of x.
_MEANS = {
    "mul": lambda g, x: g.reduce("MEAN", g("MUL", x, x)),
    "square": lambda g, x: g.reduce("MEAN", g("SQUARE", x)),
    "pow": lambda g, x: g.reduce("MEAN", g("POW", x, g.constant(2.0))),
    "axis_given_twice": lambda g, x: g.reduce("MEAN", g("SQUARE", x), (-1, 2)),
    "sum_over_size": lambda g, x: g(
        "DIV", g.reduce("SUM", g("MUL", x, x)), g.constant(16.0)
    ),
    "sum_by_inverse_size": lambda g, x: g(
        "MUL", g.constant(1 / 16), g.reduce("SUM", g("MUL", x, x))
    ),
    "vector_norm": lambda g, x: g(
        "DIV",
        g("SQUARE", g("SQRT", g.reduce("SUM", g("MUL", x, x)))),
        g.constant(16.0),
    ),
    "reshaped": lambda g, x: g.reshape(
        g.reduce("MEAN", g("MUL", x, x), keep_dims=False), (2, 3, 1)
    ),
    "expanded": lambda g, x: g(
        "EXPAND_DIMS",
        g.reduce("MEAN", g("MUL", x, x), keep_dims=False),
        g.constant(-1, np.int32),
        shape=(2, 3, 1),
    ),
    "squeezed": lambda g, x: g.reshape(
        g(
            "SQUEEZE",
            g.reduce("MEAN", g("MUL", x, x)),
            shape=(2, 3),
            squeezeDims=[2],
        ),
        (2, 3, 1),
    ),
}
# Each returns epsilon.
_EPSILONS = {
    "scalar": lambda g: g.constant(np.float32(_EPSILON)),
    "one_element": lambda g: g.constant(np.float32([[[_EPSILON]]])),
    "float16": lambda g: g(
        "DEQUANTIZE", g.constant(_EPSILON, np.float16), dtype=np.float32
    ),
}


def _rsqrt(g, v):
    return g("RSQRT", v)


def _power(g, v, exponent):
    return g("POW", v, g.constant(exponent))


def _half_weight(g, w):
    half = g.constant(w, np.float16)
    return g("DEQUANTIZE", half, dtype=np.float32)


# Each returns x / sqrt(v) * w for a weight w, given as an array.
_RESULTS = {
    "x_inverse_w": lambda g, x, v, w: g(
        "MUL", g("MUL", x, _rsqrt(g, v)), g.constant(w)
    ),
    "w_first": lambda g, x, v, w: g("MUL", g.constant(w), g("MUL", _rsqrt(g, v), x)),
    "weighted_inverse": lambda g, x, v, w: g(
        "MUL", x, g("MUL", _rsqrt(g, v), g.constant(w))
    ),
    "scaled_x": lambda g, x, v, w: g("MUL", g("MUL", g.constant(w), x), _rsqrt(g, v)),
    "scaled_x_over_rms": lambda g, x, v, w: g(
        "DIV", g("MUL", g.constant(w), x), g("SQRT", v)
    ),
    "w_over_rms": lambda g, x, v, w: g("MUL", x, g("DIV", g.constant(w), g("SQRT", v))),
    "x_over_rms": lambda g, x, v, w: g("MUL", g("DIV", x, g("SQRT", v)), g.constant(w)),
    "x_over_power": lambda g, x, v, w: g(
        "MUL", g("DIV", x, _power(g, v, 0.5)), g.constant(w)
    ),
    "inverse_power": lambda g, x, v, w: g(
        "MUL", g("MUL", x, _power(g, v, -0.5)), g.constant(w)
    ),
    "one_over_rms": lambda g, x, v, w: g(
        "MUL",
        g("MUL", x, g("DIV", g.constant(1.0), g("SQRT", v))),
        g.constant(w),
    ),
    "rms_to_minus_one": lambda g, x, v, w: g(
        "MUL",
        g("MUL", x, _power(g, g("SQRT", v), -1.0)),
        g.constant(w),
    ),
    "broadcast_inverse": lambda g, x, v, w: g(
        "MUL",
        g(
            "MUL",
            x,
            g(
                "BROADCAST_TO",
                _rsqrt(g, v),
                g.constant(_SHAPE, np.int32),
                shape=_SHAPE,
            ),
        ),
        g.constant(w),
    ),
    "broadcast_weight": lambda g, x, v, w: g(
        "MUL",
        g("MUL", x, _rsqrt(g, v)),
        g("BROADCAST_TO", g.constant(w), g.constant(_SHAPE, np.int32), shape=_SHAPE),
    ),
    "leading_ones": lambda g, x, v, w: g(
        "MUL", g("MUL", x, _rsqrt(g, v)), g.constant(w.reshape(1, 1, 16))
    ),
    "float16_weight": lambda g, x, v, w: g(
        "MUL", g("MUL", x, _rsqrt(g, v)), _half_weight(g, w)
    ),
    "reshaped_float16_weight": lambda g, x, v, w: g(
        "MUL", g("MUL", x, _rsqrt(g, v)), g.reshape(_half_weight(g, w), (1, 1, 16))
    ),
}


def _name(g, tensor, name):
    g.subgraph.tensors[tensor].name = name.encode()


def _range_safe(
    g, x, epsilon, weight=None, *, name=True, c=None, other_c=None, scale=None
):
    """Appends RMSNorm in the range-safe form; scale: of another tensor."""
    c = np.float32(np.sqrt(epsilon)) if c is None else c
    root = g.constant(c)
    if name:
        _name(g, root, f"norm/sqrt_epsilon={epsilon!r}")
    shift = root if other_c is None else g.constant(np.float32(other_c))
    m = g("MAXIMUM", g.reduce("REDUCE_MAX", g("ABS", x)), root)
    z = g("DIV", x, m if scale is None else scale)
    mean = g.reduce("MEAN", g("MUL", z, z))
    q = g("DIV", shift, m)
    inverse = g("RSQRT", g("ADD", mean, g("MUL", q, q)))
    y = g("MUL", z, inverse)
    return y if weight is None else g("MUL", y, weight)


class DecomposedTestCase(DelegateTestCase):
    """Which operators are RMSNorm, and that the result stays the runtime's."""

    def graph(self, build, *, shape=_SHAPE, dtype=np.float32):
        """Returns the model of y = build(graph, x)."""
        graph = Builder()
        outputs = build(graph, graph.input(shape, dtype))
        return graph.content(*map(int, np.atleast_1d(outputs)))

    def check(self, model, delegated=1, rtol=1e-5, whole=True, **options):
        """Runs it with the delegate and with the stock runtime."""
        options = options or {"fuse_decomposed": 1}
        nodes = _delegate_nodes(model, **options)
        self.assertLen(nodes, delegated)
        interpreter = _interpreter(model, delegate=_load_delegate(**options))
        stock = litert.Interpreter(model_content=model)
        stock.allocate_tensors()
        if whole and delegated:
            outputs = [detail["index"] for detail in stock.get_output_details()]
            self.assertEqual(list(nodes[-1]["outputs"]), outputs)
        inputs = [
            self.normal(*detail["shape"], dtype=detail["dtype"])
            for detail in stock.get_input_details()
        ]
        for y, expected in zip(
            _run(interpreter, *inputs), _run(stock, *inputs), strict=True
        ):
            np.testing.assert_allclose(
                y.astype(np.float32),
                expected.astype(np.float32),
                rtol=rtol,
                atol=rtol / 10,
            )

    def weight(self):
        return self.normal(16).astype(np.float16).astype(np.float32)


class DecomposedTest(DecomposedTestCase):
    @parameterized.parameters(*_MEANS)
    def test_mean(self, name):
        def build(g, x):
            v = g("ADD", _MEANS[name](g, x), _EPSILONS["scalar"](g))
            return _RESULTS["x_inverse_w"](g, x, v, self.weight())

        self.check(self.graph(build))

    @parameterized.parameters(*_EPSILONS)
    def test_epsilon(self, name):
        def build(g, x):
            v = g("ADD", _EPSILONS[name](g), _MEANS["mul"](g, x), shape=(2, 3, 1))
            return _RESULTS["x_inverse_w"](g, x, v, self.weight())

        self.check(self.graph(build))

    @parameterized.parameters(*_RESULTS)
    def test_result(self, name):
        def build(g, x):
            v = g("ADD", _MEANS["mul"](g, x), _EPSILONS["scalar"](g))
            return _RESULTS[name](g, x, v, self.weight())

        self.check(self.graph(build))

    def test_float16_weight_of_two_norms(self):
        """The DEQUANTIZE stays, since not one norm alone reads it."""

        def build(g, x):
            weight = _half_weight(g, self.weight())
            for _ in range(2):
                x = g("MUL", _decompose(g, x), weight)
            return x

        self.check(self.graph(build))

    def test_weight_of_ones_is_none(self):
        def build(g, x):
            y = g("MUL", _decompose(g, x), g.constant(np.ones(16)))
            return g("MUL", y, g.constant(self.weight()))

        self.check(self.graph(build))

    def test_runtime_weight(self):
        def build(g, x):
            return g("MUL", _decompose(g, x), g.input((16,)))

        self.check(self.graph(build))

    @parameterized.parameters(np.float16, ml_dtypes.bfloat16)
    def test_half_types_computed_in_float32(self, dtype):
        g = Builder()
        x = g.input(_SHAPE, dtype)
        weight = self.weight()
        y = _decompose(g, g("CAST", x, dtype=np.float32), g.constant(weight))
        model = g.content(g("CAST", y, dtype=dtype))
        self.assertEqual(_num_delegate_nodes(model, fuse_decomposed=1), 1)
        value = self.normal(*_SHAPE, dtype=dtype)
        delegate = _load_delegate(fuse_decomposed=1)
        (actual,) = _run(_interpreter(model, delegate=delegate), value)
        self.assert_close(actual, _rms_norm(value, weight))

    def test_cast_between_two_norms(self):
        """It could be the last node of one and the first one of the other."""

        def build(g, x):
            x = g("CAST", x, dtype=np.float32)
            half = g("CAST", _decompose(g, x), dtype=np.float16)
            again = g("CAST", half, dtype=np.float32)
            return g("CAST", _decompose(g, again), dtype=np.float16)

        model = self.graph(build, dtype=np.float16)
        options = {"fuse_decomposed": 1}
        delegated = _interpreter(model, delegate=_load_delegate(**options))
        x = self.normal(*_SHAPE, dtype=np.float16)
        (y,) = _run(delegated, x)
        np.testing.assert_allclose(
            y.astype(np.float64), _rms_norm(_rms_norm(x)), rtol=4e-3, atol=1e-3
        )

    def test_off_by_default_and_deprecated_option(self):
        model = self.graph(_decompose)
        self.check(model, 0, num_threads=1)
        self.check(model, fuse_primitives=1)

    @parameterized.named_parameters(
        ("epsilon_outside", lambda g, x: _with_root(g, x, _add_after_root)),
        ("maximum", lambda g, x: _with_root(g, x, _clamp("MAXIMUM"))),
        ("no_epsilon", lambda g, x: _with_root(g, x, lambda g, m: g("SQRT", m))),
        ("epsilon_zero", lambda g, x: _decompose(g, x, epsilon=0.0)),
        ("epsilon_negative", lambda g, x: _decompose(g, x, epsilon=-1e-9)),
        ("epsilon_per_row", lambda g, x: _decompose(g, x, epsilon=np.ones((3, 1)))),
        ("other_axis", lambda g, x: _decompose(g, x, axis=1)),
        ("activation", lambda g, x: _with_mean(g, x, fusedActivationFunction=1)),
        (
            "both_axes",
            lambda g, x: _with_mean(g, g.reduce("MEAN", g("MUL", x, x), (1, 2)), x),
        ),
        (
            "other_size",
            lambda g, x: _with_mean(
                g,
                g("DIV", g.reduce("SUM", g("MUL", x, x)), g.constant(15.0)),
                x,
            ),
        ),
        (
            "other_x",
            lambda g, x: _with_mean(g, g.reduce("MEAN", g("MUL", g("ABS", x), x)), x),
        ),
        (
            "rows_in_other_places",
            lambda g, x: _with_mean(
                g,
                g.reshape(g.reduce("MEAN", g("MUL", x, x)), (3, 2, 1)),
                g.reshape(x, (3, 2, 16)),
            ),
        ),
        (
            "a_gain_is_not_a_weight",
            lambda g, x: g("MUL", x, _gained_inverse(g, x)),
        ),
    )
    def test_is_not_an_rms_norm(self, build):
        self.check(self.graph(build), 0)

    @parameterized.parameters("MUL", "MEAN", "ADD", "RSQRT")
    def test_intermediate_is_an_output(self, name):
        def build(g, x):
            y = _decompose(g, x)
            codes = ["MUL", "MEAN", "ADD", "RSQRT"]
            return [y, g.subgraph.operators[codes.index(name)].outputs[0]]

        self.check(self.graph(build), 0)

    def test_norm_without_its_weight_is_an_output(self):
        def build(g, x):
            y = _decompose(g, x)
            return [y, g("MUL", y, g.constant(self.weight()))]

        self.check(self.graph(build), whole=False)

    def test_shapes_of_the_file_are_not_believed(self):
        """The runtime computes [3, 3] for the mean, along another axis of x."""

        def build(g, x):
            mean = g.reduce("MEAN", g("MUL", x, x), keep_dims=True)
            g.subgraph.operators[-1].builtinOptions.keepDims = False
            return _with_mean(g, mean, x)

        model = self.graph(build, shape=(3, 3, 3))
        self.check(model, 0)

    def test_another_rank_than_in_the_file(self):
        g = Builder()
        x = g.input((2, 3, 16))
        model = g.content(_decompose(g, x))
        interpreter = _interpreter(model, delegate=_load_delegate(fuse_decomposed=1))
        interpreter.resize_tensor_input(0, (1, 2, 3, 16))
        with self.assertRaisesRegex(RuntimeError, "x must have 3 dimensions"):
            interpreter.allocate_tensors()


def _with_mean(g, mean, x=None, **options):
    """Appends x * rsqrt(mean + epsilon); without x, of a whole norm of mean."""
    if x is None:
        mean, x = g.reduce("MEAN", g("MUL", mean, mean)), mean
    shifted = g("ADD", mean, g.constant(np.float32(_EPSILON)), **options)
    return g("MUL", x, g("RSQRT", shifted))


def _with_root(g, x, root):
    """Appends x / root(mean(x²))."""
    return g("DIV", x, root(g, g.reduce("MEAN", g("MUL", x, x))))


def _add_after_root(g, mean):
    return g("ADD", g("SQRT", mean), g.constant(np.float32(_EPSILON)))


def _clamp(name):
    return lambda g, mean: g("SQRT", g(name, mean, g.constant(np.float32(_EPSILON))))


def _gained_inverse(g, x):
    mean = g.reduce("MEAN", g("MUL", x, x))
    shifted = g("ADD", mean, g.constant(np.float32(_EPSILON)))
    return g("MUL", g("RSQRT", shifted), g.constant(2.0))


class RangeSafeTest(DecomposedTestCase):
    """The range-safe form needs no option."""

    def values(self, model, value):
        (y,) = _run(_interpreter(model), value)
        return y

    @parameterized.product(epsilon=(1e-6, 1e-5, 0.3, 1.0), weight=(False, True))
    def test_is_claimed(self, epsilon, weight):
        def build(g, x):
            w = (g.constant(self.weight()),) if weight else ()
            return _range_safe(g, x, epsilon, *w)

        self.check(self.graph(build), num_threads=1)

    def test_rows_that_overflow(self):
        weight = self.weight()
        model = self.graph(lambda g, x: _range_safe(g, x, 1e-6, g.constant(weight)))
        x = self.normal(*_SHAPE) * np.float32(1e37)
        self.assert_close(self.values(model, x), _rms_norm(x, weight))

    @parameterized.parameters(
        (1e-6, "norm/sqrt_epsilon=1e-06", 1e-6),
        # Another number than that of the constant, or none.
        (0.5, "norm/sqrt_epsilon=0.25", float(np.float32(np.sqrt(0.5))) ** 2),
        (0.5, "norm/sqrt_epsilon=0,5", float(np.float32(np.sqrt(0.5))) ** 2),
        (0.5, "sqrt_epsilon", float(np.float32(np.sqrt(0.5))) ** 2),
    )
    def test_epsilon(self, epsilon, name, expected):
        g = Builder()
        x = g.input((1, 16))
        root = g.constant(np.float32(np.sqrt(epsilon)))
        _name(g, root, name)
        m = g("MAXIMUM", g.reduce("REDUCE_MAX", g("ABS", x)), root)
        z, q = g("DIV", x, m), g("DIV", root, m)
        mean = g.reduce("MEAN", g("MUL", z, z))
        shifted = g("ADD", mean, g("MUL", q, q))
        model = g.content(g("MUL", z, g("RSQRT", shifted)))
        self.assertEqual(_num_delegate_nodes(model), 1)
        value = np.full((1, 16), 1e-4, np.float32)
        self.assert_close(self.values(model, value), _rms_norm(value, None, expected))

    def test_by_reciprocals(self):
        def build(g, x):
            root = g.constant(np.float32(np.sqrt(_EPSILON)))
            m = g("MAXIMUM", root, g.reduce("REDUCE_MAX", g("ABS", x)))
            inverse = g("DIV", g.constant(1.0), m)
            z, q = g("MUL", inverse, x), g("MUL", root, inverse)
            mean = g.reduce("MEAN", g("SQUARE", z))
            rms = g("SQRT", g("ADD", g("SQUARE", q), mean))
            return g("DIV", z, rms)

        self.check(self.graph(build), num_threads=1)

    def test_half_types(self):
        g = Builder()
        x = g.input(_SHAPE, np.float16)
        y = _range_safe(g, g("CAST", x, dtype=np.float32), 1e-6)
        model = g.content(g("CAST", y, dtype=np.float16))
        self.assertEqual(_num_delegate_nodes(model), 1)
        value = self.normal(*_SHAPE, dtype=np.float16) * np.float16(1000)
        self.assert_close(self.values(model, value), _rms_norm(value))

    @parameterized.named_parameters(
        ("other_c", lambda g, x: _range_safe(g, x, 1e-2, other_c=0.11)),
        (
            "other_scale",
            lambda g, x: _range_safe(
                g,
                x,
                1e-2,
                scale=g(
                    "MAXIMUM",
                    g.reduce("REDUCE_MAX", g("ABS", x)),
                    g.constant(np.float32(0.2)),
                ),
            ),
        ),
        (
            "other_x",
            lambda g, x: g(
                "MUL", x, _range_safe(g, g("MUL", x, g.constant(2.0)), 1e-2)
            ),
            True,
        ),
    )
    def test_is_not_range_safe_rms_norm(self, build, claimed=False):
        model = self.graph(build)
        self.assertEqual(_num_delegate_nodes(model), claimed)
        stock = litert.Interpreter(model_content=model)
        stock.allocate_tensors()
        value = self.normal(*_SHAPE)
        np.testing.assert_allclose(
            self.values(model, value), _run(stock, value)[0], rtol=1e-5, atol=1e-6
        )

    def test_scale_is_an_output(self):
        def build(g, x):
            y = _range_safe(g, x, 1e-6)
            return [y, g.subgraph.operators[2].outputs[0]]

        self.assertEqual(_num_delegate_nodes(self.graph(build)), 0)


class MlDriftTest(DelegateTestCase):
    """CUSTOM custom_call.RmsNorm, which LiteRT's GPU backend runs as well."""

    def model(self, *weight, options=None):
        g = Builder()
        x = g.input((4, 8))
        y = g.like(g.subgraph.tensors[x])
        operands = [x, *(g.constant(w) for w in weight)]
        g.custom("custom_call.RmsNorm", operands, [y], options or {"epsilon": 0.25})
        return g.content(y)

    @parameterized.parameters(0, 1)
    def test_runs(self, num_weights):
        weight = [self.normal(8)][:num_weights]
        x = self.normal(4, 8)
        (y,) = _run(_interpreter(self.model(*weight)), x)
        self.assert_close(y, _rms_norm(x, *(weight or [None]), 0.25))

    def test_weight_of_another_rank(self):
        message = r"custom_call.RmsNorm: weight must have shape \[8\].*got \[1, 8\]"
        with self.assertRaisesRegex(RuntimeError, message):
            _interpreter(self.model(np.ones((1, 8))))

    def test_other_options(self):
        message = 'custom_call.RmsNorm: unknown option "axis"'
        with self.assertRaisesRegex(RuntimeError, message):
            _interpreter(self.model(options={"axis": 1, "epsilon": 0.25}))


def _composite(g, x, *weight, inside, attributes=None, y=None):
    """Appends the composite with that decomposition; its epsilon is _EPSILON."""
    y = g.like(g.subgraph.tensors[x]) if y is None else y
    g.composite([x, *weight], [y], inside, _EPSILON, attributes)
    return y


class CompositeTest(DelegateTestCase):
    def model(self, weight=True, attributes=None, extra=None, lead=(), **kwargs):
        """Returns x -> composite -> y.

        x has shape [*lead, 3, 16], in the decomposition [3, 16].
        """
        graph = Builder()
        operands = [graph.input((*lead, 3, 16))]
        if weight:
            operands.append(graph.constant(self.normal(16)))
        with graph.branch(b"odml.rms_norm.impl") as inside:
            inner = [graph.input((3, 16))]
            if weight:
                inner.append(graph.input((16,)))
            factors = () if extra is None else (graph.constant(extra),)
            changes = {"epsilon": _EPSILON, "extra": factors, **kwargs}
            graph.subgraph.outputs = [_decompose(graph, *inner, **changes)]
        return graph.content(
            _composite(graph, *operands, inside=inside, attributes=attributes)
        )

    def assert_same_as_runtime(self, model):
        stock = litert.Interpreter(model_content=model)
        stock.allocate_tensors()
        x = self.normal(*stock.get_input_details()[0]["shape"])
        (y,) = _run(_interpreter(model), x)
        (expected,) = _run(stock, x)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)

    @parameterized.parameters(False, True)
    def test_claims_rms_norm(self, weight):
        model = self.model(weight=weight)
        self.assertEqual(_num_delegate_nodes(model), 1)
        self.assert_same_as_runtime(model)

    @parameterized.named_parameters(
        ("hidden_scale", {"extra": np.arange(16)}),
        ("other_axis", {"axis": 0}),
        ("other_epsilon", {"epsilon": 1e-2}),
        ("fused_activation", {"act": 1}),
        # The runtime gives the decomposition x's shape, and axis 1 another meaning.
        ("other_rank", {"lead": (2,)}),
        ("unknown_attribute", {"attributes": {"epsilon": 1e-3, "axis": 0}}),
        ("no_epsilon", {"attributes": {"eps": 1e-3}}),
        ("epsilon_is_text", {"attributes": {"epsilon": "1e-3"}}),
    )
    def test_leaves_to_the_runtime(self, changes):
        model = self.model(**changes)
        self.assertEqual(_num_delegate_nodes(model), 0)
        self.assert_same_as_runtime(model)

    def around(
        self,
        build,
        shape=(2, 3, 16),
        inner=None,
        weight=False,
        dtype=np.float32,
        inner_dtype=None,
        signature=None,
        y_shape=None,
    ):
        """Returns x -> composite -> y; build(graph, x[, weight]) decomposes it."""
        graph = Builder()
        weights = [graph.constant(self.normal(16))] if weight else []
        x = graph.input(shape, dtype, signature)
        y = graph.tensor(y_shape, dtype) if y_shape else None
        with graph.branch(b"odml.rms_norm.impl") as inside:
            inner_x = graph.input(inner or shape, inner_dtype or dtype, signature)
            inner_weights = [graph.input((16,))] if weight else []
            graph.subgraph.outputs = [build(graph, inner_x, *inner_weights)]
        return graph.content(_composite(graph, x, *weights, inside=inside, y=y))

    @parameterized.parameters(*_MEANS)
    def test_mean(self, name):
        def build(g, x, w):
            v = g("ADD", _MEANS[name](g, x), _EPSILONS["scalar"](g))
            return g("MUL", w, g("MUL", x, _rsqrt(g, v)))

        model = self.around(build, weight=True)
        self.assertEqual(_num_delegate_nodes(model), 1)
        self.assert_same_as_runtime(model)

    @parameterized.parameters(*_EPSILONS)
    def test_root_and_epsilon(self, name):
        for root in (
            lambda g, x, v: g("MUL", _power(g, v, -0.5), x),
            lambda g, x, v: g("DIV", x, _power(g, v, 0.5)),
            lambda g, x, v: g("MUL", x, g("DIV", g.constant(1.0), g("SQRT", v))),
        ):

            def build(g, x, w, root=root):
                epsilon = _EPSILONS[name](g)
                v = g("ADD", epsilon, _MEANS["mul"](g, x), shape=(2, 3, 1))
                leading_ones = g.reshape(w, (1, 1, 16))
                return g("MUL", leading_ones, root(g, x, v))

            # 1e-3 in float16 is further from the attribute than a rounding.
            claimed = name != "float16"
            model = self.around(build, weight=True)
            self.assertEqual(_num_delegate_nodes(model), claimed)
            self.assert_same_as_runtime(model)

    @parameterized.parameters(False, True)
    def test_range_safe_decomposition(self, weight):
        model = self.around(
            lambda g, x, *w: _range_safe(g, x, _EPSILON, *w), weight=weight
        )
        self.assertEqual(_num_delegate_nodes(model), 1)
        self.assert_same_as_runtime(model)

    def test_decomposition_before_the_composite(self):
        """The delegate has replaced its operators when it sees the composite."""
        graph = Builder()
        x, w = graph.input((2, 16)), graph.input((16,))
        graph.subgraph.outputs = [_range_safe(graph, x, _EPSILON, w)]
        weight = self.normal(16)
        with graph.branch(b"main"):
            x = graph.input((2, 16))
            y = _composite(graph, x, graph.constant(weight), inside=0)
            y = graph("ADD", y, y)
            graph.subgraph.outputs = [y]
            graph.serve({"x0": x}, {"y0": y}, "main")
        model = flatbuffer.to_bytes(graph.model)
        interpreter = _interpreter(model, xnnpack=False)
        value = self.normal(2, 16)
        y = interpreter.get_signature_runner("main")(x0=value)["y0"]
        self.assert_close(y, 2 * _rms_norm(value, weight, _EPSILON))
        # The name in the message is that of the operator that has run.
        with self.assertRaisesRegex(RuntimeError, "odml.rms_norm: x must have 2"):
            interpreter.get_signature_runner("main")(x0=value[None])

    def test_without_weight_around_a_constant_of_ones(self):
        model = self.around(
            lambda g, x: g(
                "MUL", _decompose(g, x, epsilon=_EPSILON), g.constant(np.ones(16))
            )
        )
        self.assertEqual(_num_delegate_nodes(model), 1)
        self.assert_same_as_runtime(model)

    def test_dynamic_rows(self):
        model = self.around(
            lambda g, x: _decompose(g, x, epsilon=_EPSILON),
            shape=(1, 16),
            signature=[-1, 16],
        )
        interpreter = _interpreter(model)
        interpreter.resize_tensor_input(0, (4, 16))
        interpreter.allocate_tensors()
        x = self.normal(4, 16)
        (y,) = _run(interpreter, x)
        self.assert_close(y, _rms_norm(x, None, _EPSILON))

    @parameterized.named_parameters(
        (
            "other_rank",
            {"shape": (1, 2, 3, 16), "inner": (2, 3, 16)},
            lambda g, x: _decompose(g, x, epsilon=_EPSILON, axis=2),
        ),
        (
            "all_axes_of_a_placeholder",
            {"shape": (1, 16), "signature": [-1, 16]},
            lambda g, x: _with_mean(g, g.reduce("MEAN", g("MUL", x, x), (0, 1)), x),
        ),
        ("other_shape", {"shape": (2, 8), "inner": (2, 16)}, None),
        ("other_rows", {"shape": (3, 16), "inner": (2, 16)}, None),
        ("shape_of_y", {"y_shape": (1, 2, 3, 16)}, None),
        ("other_type", {"dtype": np.int32, "inner_dtype": np.float32}, None),
        (
            "further_operator",
            {},
            lambda g, x: g("ABS", _decompose(g, x, epsilon=_EPSILON)),
        ),
        (
            "epsilon_outside_the_root",
            {},
            lambda g, x: _with_root(g, x, _add_after_root),
        ),
        (
            "int8_inside",
            {},
            lambda g, x: g(
                "CAST",
                g("CAST", _decompose(g, x, epsilon=_EPSILON), dtype=np.int8),
                dtype=np.float32,
            ),
        ),
    )
    def test_is_not_the_norm_of_its_operands(self, around, build):
        if build is None:

            def build(g, x):
                return _decompose(g, x, epsilon=_EPSILON)

        model = self.around(build, **around)
        # Whether the runtime can run it, does not matter here.
        interpreter = litert.Interpreter(
            model_content=model,
            experimental_delegates=[_load_delegate()],
            experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        names = [detail["op_name"] for detail in interpreter._get_ops_details()]
        self.assertEqual(names, ["STABLEHLO_COMPOSITE"])

    def test_output_is_read_inside(self):
        """The norm is the output; that of another operator is not."""

        def build(g, x, w):
            y = _decompose(g, x, epsilon=_EPSILON)
            g("MUL", y, w)
            return y

        model = self.around(build, weight=True)
        self.assertEqual(_num_delegate_nodes(model), 0)
        self.assert_same_as_runtime(model)

    def test_which_input_is_x_cannot_be_told(self):
        def build(g, x, w):
            return _decompose(g, x, w, epsilon=_EPSILON)

        model = self.around(build, shape=(16,), weight=True)
        self.assertEqual(_num_delegate_nodes(model), 0)
        self.assert_same_as_runtime(model)

    def test_composite_of_itself(self):
        """The runtime runs into itself when it allocates, so that comes after."""
        graph = Builder()
        model = graph.content(_composite(graph, graph.input((2, 16)), inside=0))
        interpreter = litert.Interpreter(
            model_content=model,
            experimental_delegates=[_load_delegate()],
            experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        names = [detail["op_name"] for detail in interpreter._get_ops_details()]
        self.assertEqual(names, ["STABLEHLO_COMPOSITE"])

    def test_statistic_of_other_rows(self):
        """Every row divided by the rms of every row, as a reshape makes of it."""
        graph = Builder()
        x, y = graph.input((3, 1, 16)), graph.tensor((3, 3, 16))
        with graph.branch(b"odml.rms_norm.impl") as inside:
            inner = graph.input((3, 1, 16))
            _decompose(graph, inner, epsilon=_EPSILON)
            inverse = graph.subgraph.operators.pop().inputs[1]
            turned = graph.reshape(inverse, (1, 3, 1))
            graph.subgraph.outputs = [graph("MUL", inner, turned)]
        model = graph.content(_composite(graph, x, inside=inside, y=y))
        self.assertEqual(_num_delegate_nodes(model), 0)
        self.assert_same_as_runtime(model)


class ErrorTest(DelegateTestCase):
    def assert_rejected(self, build, message):
        graph = Builder()
        model = graph.content(build(graph))
        with self.assertRaisesRegex((RuntimeError, ValueError), message):
            _interpreter(model)

    @parameterized.named_parameters(
        ("no_options", b"", "FlexBuffers map .*, got 0 bytes"),
        ("garbage", b"garbage options", "not a valid FlexBuffer"),
        ("no_map", flexbuffers.Dumps(1e-6), "must be a FlexBuffers map"),
        ("no_epsilon", {}, '"epsilon" is missing'),
        ("unknown", {"epsilon": 1.0, "axis": 1}, '"axis"'),
        ("text", {"epsilon": "1e-6"}, "must be a number"),
        ("zero", {"epsilon": 0.0}, "> 0, got 0"),
        ("negative", {"epsilon": -1e-6}, "> 0, got -"),
        ("nan", {"epsilon": float("nan")}, "finite.*nan"),
        ("inf", {"epsilon": float("inf")}, "finite.*inf"),
    )
    def test_options(self, options, message):
        def build(graph):
            return _norm(graph, graph.input((2, 8)), options=options)

        self.assert_rejected(build, "ai_edge_torch.rms_norm: .*" + message)

    @parameterized.named_parameters(
        ("length", (7,), np.float32, r"shape \[8\].*got \[7\]"),
        ("rank", (1, 8), np.float32, r"shape \[8\].*got \[1, 8\]"),
        ("type", (8,), np.int8, "weight must be float32 .*got int8"),
        ("half", (8,), np.float16, "weight must be float32 .*got float16"),
    )
    def test_weight(self, shape, dtype, message):
        def build(graph):
            weight = graph.constant(np.ones(shape), dtype)
            return _norm(graph, graph.input((2, 8)), weight)

        self.assert_rejected(build, message)

    def test_quantized_input(self):
        def build(graph):
            return _norm(graph, graph.input((2, 8), np.int8))

        self.assert_rejected(build, "x must be float32, float16 .*got int8")

    def test_output_of_another_type(self):
        def build(graph):
            y = graph.tensor((2, 8), np.float16)
            return _norm(graph, graph.input((2, 8)), y=y)

        self.assert_rejected(build, "y must have the type of x, float32, got float16")

    def test_scalar(self):
        self.assert_rejected(
            lambda graph: _norm(graph, graph.input(())),
            "at least one dimension",
        )

    def test_residual_of_another_shape(self):
        def build(graph):
            _, y = _add_norm(graph, graph.input((2, 8)), graph.input((1, 8)))
            return y

        self.assert_rejected(build, r"residual must .*\[2, 8\].*got float32 \[1, 8\]")

    def test_number_of_operands(self):
        def build(graph):
            x = graph.input((2, 8))
            return _norm(graph, x, x, x)

        self.assert_rejected(build, "got 3 inputs")

    def test_output_is_constant(self):
        def build(graph):
            y = graph.constant(np.zeros((2, 8)))
            return _norm(graph, graph.input((2, 8)), y=y)

        self.assert_rejected(build, "y is a constant tensor")

    @parameterized.parameters("0", "-1", "two", "2.5", "", "1000", "99999999999")
    def test_num_threads(self, value):
        with self.assertRaisesRegex(ValueError, "num_threads must be .* got"):
            _load_delegate(num_threads=value)

    def test_unknown_delegate_option(self):
        with self.assertRaisesRegex(ValueError, 'unknown option "threads"'):
            _load_delegate(threads=1)


class LibraryTest(absltest.TestCase):
    def test_exports(self):
        # Anything more could take the place of a symbol of the application.
        listing = subprocess.run(
            ["nm", "--dynamic", "--defined-only", "--format=posix", _DELEGATE.value],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        self.assertCountEqual(
            [line.split()[0] for line in listing.splitlines()],
            [
                "LiteRtAcceleratorImpl",
                "ai_edge_rms_norm_set_num_threads",
                "ai_edge_rms_norm_variant",
                "ai_edge_rms_norm_variants",
                "tflite_plugin_create_delegate",
                "tflite_plugin_destroy_delegate",
            ],
        )

    def test_needs_no_new_standard_library(self):
        # docs/arm64.md: GCC 7's has what it needs; GCC 11's first had this.
        listing = subprocess.run(
            ["nm", "--dynamic", "--undefined-only", _DELEGATE.value],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        self.assertNotIn("__throw_bad_array_new_length", listing)

    def test_variant(self):
        library = ctypes.CDLL(_DELEGATE.value)
        for function in (
            library.ai_edge_rms_norm_variant,
            library.ai_edge_rms_norm_variants,
        ):
            function.restype = ctypes.c_char_p
        names = library.ai_edge_rms_norm_variants().split(b", ")
        self.assertIn(library.ai_edge_rms_norm_variant(), names)
        self.assertEqual(names[-1], b"generic")


if __name__ == "__main__":
    absltest.main()
