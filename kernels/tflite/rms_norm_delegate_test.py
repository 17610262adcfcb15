"""Runs .tflite models through LiteRT with the delegate as external delegate.

By hand: python3 rms_norm_delegate_test.py --delegate=<librms_norm_delegate.so>
"""

import concurrent.futures
import ctypes
import os
import subprocess

import flatbuffers
import ml_dtypes
import numpy as np
from absl import flags
from absl.testing import absltest, parameterized
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

_DELEGATE = flags.DEFINE_string(
    "delegate",
    os.path.join(os.path.dirname(__file__), "librms_norm_delegate.so"),
    "Path of the delegate.",
)

_OP = schema.BuiltinOperator
_OPTIONS = schema.BuiltinOptions
_OPTIONS_2 = schema.BuiltinOptions2
_TENSOR_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): schema.TensorType.BFLOAT16,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int8): schema.TensorType.INT8,
}
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


class _Subgraph:
    """Adds tensors and operators to one subgraph of a model."""

    def __init__(self, model: "_Model", name: str):
        self._model = model
        self.graph = schema.SubGraphT(
            tensors=[], inputs=[], outputs=[], operators=[], name=name.encode()
        )

    def tensor(self, shape, dtype=np.float32, data=None, signature=None) -> int:
        buffer = 0
        if data is not None:
            data = np.ascontiguousarray(data, dtype)
            buffer = self._model.buffer(data.tobytes())
        index = len(self.graph.tensors)
        self.graph.tensors.append(
            schema.TensorT(
                shape=list(shape),
                type=_TENSOR_TYPES[np.dtype(dtype)],
                buffer=buffer,
                name=f"t{index}".encode(),
                shapeSignature=signature,
            )
        )
        return index

    def constant(self, data, dtype=np.float32) -> int:
        return self.tensor(np.shape(data), dtype, data)

    def input(self, shape, dtype=np.float32, signature=None) -> int:
        index = self.tensor(shape, dtype, signature=signature)
        self.graph.inputs.append(index)
        return index

    def output(self, index: int) -> None:
        self.graph.outputs.append(index)

    def like(self, index: int) -> int:
        tensor = self.graph.tensors[index]
        self.graph.tensors.append(
            schema.TensorT(
                shape=list(tensor.shape),
                type=tensor.type,
                buffer=0,
                name=f"t{len(self.graph.tensors)}".encode(),
                shapeSignature=tensor.shapeSignature,
            )
        )
        return len(self.graph.tensors) - 1

    def operator(self, code, inputs, outputs, **fields) -> None:
        self.graph.operators.append(
            schema.OperatorT(
                opcodeIndex=self._model.operator_code(code),
                inputs=list(inputs),
                outputs=list(outputs),
                **fields,
            )
        )

    def rms_norm(self, x, *weight, epsilon=1e-6, options=None, y=None) -> int:
        y = self.like(x) if y is None else y
        if options is None:
            options = flexbuffers.Dumps({"epsilon": epsilon})
        self.operator(
            "ai_edge_torch.rms_norm",
            [x, *weight],
            [y],
            customOptions=np.frombuffer(bytes(options), np.uint8),
        )
        return y

    def add_rms_norm(self, x, residual, *weight, epsilon=1e-6) -> tuple[int, int]:
        outputs = self.like(x), self.like(x)
        self.operator(
            "ai_edge_torch.add_rms_norm",
            [x, residual, *weight],
            outputs,
            customOptions=np.frombuffer(
                bytes(flexbuffers.Dumps({"epsilon": epsilon})), np.uint8
            ),
        )
        return outputs

    def composite(self, x, *weight, decomposition, attributes, y=None) -> int:
        y = self.like(x) if y is None else y
        self.operator(
            _OP.STABLEHLO_COMPOSITE,
            [x, *weight],
            [y],
            builtinOptions2Type=_OPTIONS_2.StableHLOCompositeOptions,
            builtinOptions2=schema.StableHLOCompositeOptionsT(
                name=b"odml.rms_norm",
                decompositionSubgraphIndex=decomposition,
                compositeAttributes=np.frombuffer(
                    bytes(flexbuffers.Dumps(attributes)), np.uint8
                ),
            ),
        )
        return y

    def binary(self, name: str, x: int, y: int, activation=0) -> int:
        output = self.like(x)
        options = getattr(schema, f"{name.capitalize()}OptionsT")()
        options.fusedActivationFunction = activation
        self.operator(
            getattr(_OP, name),
            [x, y],
            [output],
            builtinOptionsType=getattr(_OPTIONS, f"{name.capitalize()}Options"),
            builtinOptions=options,
        )
        return output


class _Model:
    def __init__(self):
        self._model = schema.ModelT(
            version=3,
            operatorCodes=[],
            subgraphs=[],
            buffers=[schema.BufferT()],
            signatureDefs=[],
        )
        self._codes = {}

    def buffer(self, data: bytes) -> int:
        self._model.buffers.append(schema.BufferT(data=np.frombuffer(data, np.uint8)))
        return len(self._model.buffers) - 1

    def operator_code(self, code) -> int:
        if code not in self._codes:
            self._codes[code] = len(self._codes)
            builtin = _OP.CUSTOM if isinstance(code, str) else code
            self._model.operatorCodes.append(
                schema.OperatorCodeT(
                    builtinCode=builtin,
                    deprecatedBuiltinCode=min(builtin, 127),
                    customCode=code.encode() if isinstance(code, str) else None,
                    version=1,
                )
            )
        return self._codes[code]

    def subgraph(self, name="main") -> _Subgraph:
        subgraph = _Subgraph(self, name)
        self._model.subgraphs.append(subgraph.graph)
        return subgraph

    def signature(self, subgraph: int) -> None:
        graph = self._model.subgraphs[subgraph]
        self._model.signatureDefs.append(
            schema.SignatureDefT(
                inputs=[
                    schema.TensorMapT(f"x{i}".encode(), t)
                    for i, t in enumerate(graph.inputs)
                ],
                outputs=[
                    schema.TensorMapT(f"y{i}".encode(), t)
                    for i, t in enumerate(graph.outputs)
                ],
                signatureKey=graph.name,
                subgraphIndex=subgraph,
            )
        )

    def finish(self) -> bytes:
        builder = flatbuffers.Builder()
        builder.Finish(self._model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _load_delegate(**options):
    return litert.load_delegate(
        _DELEGATE.value, {key: str(value) for key, value in options.items()}
    )


def _interpreter(model: _Model, *, delegate=None, xnnpack=True, **kwargs):
    resolver = litert.OpResolverType
    interpreter = litert.Interpreter(
        model_content=model.finish(),
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


def _num_delegate_nodes(model: _Model) -> int:
    details = _interpreter(model, xnnpack=False)._get_ops_details()
    return sum(detail["op_name"] == "DELEGATE" for detail in details)


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
        model = _Model()
        graph = model.subgraph()
        graph.output(graph.rms_norm(graph.input(shape), graph.constant(weight)))
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
        model = _Model()
        graph = model.subgraph()
        graph.output(
            graph.rms_norm(
                graph.input((5, 576), dtype), graph.constant(weight, weight_dtype)
            )
        )
        x = self.normal(5, 576, dtype=dtype)
        (y,) = _run(_interpreter(model), x)
        self.assertEqual(y.dtype, dtype)
        self.assert_close(y, _rms_norm(x, weight))

    def test_weight_as_runtime_input(self):
        model = _Model()
        graph = model.subgraph()
        graph.output(graph.rms_norm(graph.input((4, 8)), graph.input((8,))))
        x, weight = self.normal(4, 8), self.normal(8)
        (y,) = _run(_interpreter(model), x, weight)
        self.assert_close(y, _rms_norm(x, weight))

    @parameterized.parameters(((),), ((-1,),))
    def test_without_weight(self, weight):
        model = _Model()
        graph = model.subgraph()
        graph.output(graph.rms_norm(graph.input((4, 8)), *weight))
        x = self.normal(4, 8)
        (y,) = _run(_interpreter(model), x)
        self.assert_close(y, _rms_norm(x))

    def test_adjacent_norms_with_different_epsilons(self):
        weights = [self.normal(64) for _ in range(3)]
        model = _Model()
        graph = model.subgraph()
        x = graph.input((7, 64))
        first = graph.rms_norm(x, graph.constant(weights[0]), epsilon=1e-6)
        second = graph.rms_norm(first, graph.constant(weights[1]), epsilon=0.25)
        third = graph.rms_norm(first, graph.constant(weights[2]), epsilon=3.0)
        last = graph.rms_norm(third)
        graph.output(second)
        graph.output(last)
        value = self.normal(7, 64)
        interpreter = _interpreter(model)
        for _ in range(2):
            y = _run(interpreter, value)
            expected = _rms_norm(value, weights[0], 1e-6)
            self.assert_close(y[0], _rms_norm(expected, weights[1], 0.25))
            self.assert_close(y[1], _rms_norm(_rms_norm(expected, weights[2], 3.0)))

    def test_between_operators_of_the_runtime(self):
        weight, matrix = self.normal(32), self.normal(32, 32)
        model = _Model()
        graph = model.subgraph()
        x = graph.input((6, 32))
        doubled = graph.binary("ADD", x, x)
        normalized = graph.rms_norm(doubled, graph.constant(weight))
        product = graph.like(x)
        graph.operator(
            _OP.FULLY_CONNECTED,
            [normalized, graph.constant(matrix)],
            [product],
            builtinOptionsType=_OPTIONS.FullyConnectedOptions,
            builtinOptions=schema.FullyConnectedOptionsT(keepNumDims=True),
        )
        graph.output(graph.rms_norm(graph.binary("ADD", product, normalized)))
        value = self.normal(6, 32)
        expected = _rms_norm(2 * value.astype(np.float64), weight)
        expected = _rms_norm(expected @ matrix.T.astype(np.float64) + expected)
        for xnnpack in (False, True):
            (y,) = _run(_interpreter(model, xnnpack=xnnpack), value)
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)

    @parameterized.parameters(("sum", "y"), ("sum",), ("y",))
    def test_add_rms_norm(self, *outputs):
        weight = self.normal(640)
        model = _Model()
        graph = model.subgraph()
        x, residual = graph.input((5, 640)), graph.input((5, 640))
        results = graph.add_rms_norm(x, residual, graph.constant(weight), epsilon=1e-5)
        for name, index in zip(("sum", "y"), results, strict=True):
            if name in outputs:
                graph.output(index)
        a, b = self.normal(5, 640), self.normal(5, 640)
        expected = {"sum": a + b, "y": _rms_norm(a + b, weight, 1e-5)}
        values = _run(_interpreter(model), a, b)
        for name, value in zip(outputs, values, strict=True):
            self.assert_close(value, expected[name])

    def test_chain_of_residual_blocks(self):
        # Every partition keeps tensors of its own; nothing may overlap.
        model = _Model()
        graph = model.subgraph()
        x = stream = graph.input((3, 128))
        for i in range(12):
            stream, y = graph.add_rms_norm(stream, x, epsilon=10.0 ** -(i % 7))
            x = y if i % 3 else graph.binary("MUL", y, stream)
        graph.output(x)
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
        model = _Model()
        graph = model.subgraph()
        graph.output(graph.rms_norm(graph.input((1, 4)), epsilon=epsilon))
        (y,) = _run(_interpreter(model), np.full((1, 4), 1e-30, np.float32))
        self.assert_close(y, _rms_norm(np.full((1, 4), 1e-30), None, epsilon))

    @parameterized.parameters(1, 2)
    def test_threads(self, num_threads):
        model = _Model()
        graph = model.subgraph()
        graph.output(graph.rms_norm(graph.input((512, 1024))))
        x = self.normal(512, 1024)
        expected = _run(_interpreter(model, num_threads=1), x)[0]
        for interpreter in (
            _interpreter(model, num_threads=num_threads),
            _interpreter(model, delegate=_load_delegate(num_threads=num_threads)),
        ):
            np.testing.assert_array_equal(_run(interpreter, x)[0], expected)

    def test_interpreters_in_several_threads_share_a_delegate(self):
        model = _Model()
        graph = model.subgraph()
        x = graph.input((256, 512))
        graph.output(graph.rms_norm(graph.rms_norm(x, epsilon=0.5)))
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
        model = _Model()
        for i, (name, weight) in enumerate(zip(("a", "b"), weights, strict=True)):
            graph = model.subgraph(name)
            y = graph.rms_norm(
                graph.input((i + 1, weight.size)), graph.constant(weight), epsilon=i + 1
            )
            graph.output(graph.rms_norm(y))
            model.signature(i)
        interpreter = _interpreter(model)
        for i, (name, weight) in enumerate(zip(("a", "b"), weights, strict=True)):
            x = self.normal(i + 1, weight.size)
            y = interpreter.get_signature_runner(name)(x0=x)["y0"]
            self.assert_close(y, _rms_norm(_rms_norm(x, weight, i + 1)))


class DynamicShapeTest(DelegateTestCase):
    def test_resized_input(self):
        weight = self.normal(48)
        model = _Model()
        graph = model.subgraph()
        x = graph.input((1, 1, 48), signature=[-1, -1, 48])
        stream, y = graph.add_rms_norm(x, x, graph.constant(weight))
        y = graph.binary("ADD", graph.rms_norm(y), stream)
        graph.output(graph.rms_norm(y))
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
        model = _Model()
        graph = model.subgraph()
        x = graph.input((4, 6))
        shape = graph.input((2,), np.int32)
        reshaped = graph.tensor((1, 1), signature=[-1, -1])
        graph.operator(_OP.RESHAPE, [x, shape], [reshaped])
        y = graph.rms_norm(graph.rms_norm(reshaped, epsilon=2.0))
        graph.output(graph.binary("ADD", y, y))
        interpreter = _interpreter(model)
        for shape in ((4, 6), (2, 12), (24, 1), (1, 24)):
            x = self.normal(4, 6)
            (y,) = _run(interpreter, x, np.array(shape, np.int32))
            expected = _rms_norm(_rms_norm(x.reshape(shape), None, 2.0))
            self.assert_close(y, 2 * expected)

    def test_resize_to_another_hidden_size_than_the_weight_has(self):
        model = _Model()
        graph = model.subgraph()
        x = graph.input((2, 8), signature=[-1, -1])
        graph.output(graph.rms_norm(x, graph.constant(np.ones(8))))
        interpreter = _interpreter(model)
        interpreter.resize_tensor_input(0, (2, 9))
        with self.assertRaisesRegex(RuntimeError, r"weight must have shape \[9\]"):
            interpreter.allocate_tensors()


def _decompose(graph: _Subgraph, x, *weight, epsilon=1e-6, axis=-1, extra=(), act=0):
    """Appends RMSNorm in primitive operators; extra: further factors."""
    square = graph.binary("MUL", x, x)
    shape = list(graph.graph.tensors[x].shape)
    shape[axis] = 1
    mean = graph.tensor(shape)
    graph.operator(
        _OP.MEAN,
        [square, graph.constant([axis % len(shape)], np.int32)],
        [mean],
        builtinOptionsType=_OPTIONS.ReducerOptions,
        builtinOptions=schema.ReducerOptionsT(keepDims=True),
    )
    shifted = graph.binary("ADD", mean, graph.constant(np.float32(epsilon)))
    inverse = graph.like(mean)
    graph.operator(_OP.RSQRT, [shifted], [inverse])
    y = graph.binary("MUL", x, inverse)
    for factor in (*extra, *weight):
        y = graph.binary("MUL", y, factor, activation=act)
    return y


class CompositeTest(DelegateTestCase):
    def model(self, weight=True, attributes=None, extra=None, lead=(), **kwargs):
        """Returns x -> composite -> y.

        x has shape [*lead, 3, 16], in the decomposition [3, 16].
        """
        model = _Model()
        graph = model.subgraph()
        inputs = [graph.input((*lead, 3, 16))]
        if weight:
            inputs.append(graph.constant(self.normal(16)))
        graph.output(
            graph.composite(
                *inputs,
                decomposition=1,
                attributes=attributes or {"epsilon": 1e-3},
            )
        )
        implementation = model.subgraph("odml.rms_norm.impl")
        inputs = [implementation.input((3, 16))]
        if weight:
            inputs.append(implementation.input((16,)))
        factors = () if extra is None else (implementation.constant(extra),)
        implementation.output(
            _decompose(
                implementation, *inputs, **{"epsilon": 1e-3, "extra": factors, **kwargs}
            )
        )
        return model

    def assert_same_as_runtime(self, model):
        stock = litert.Interpreter(model_content=model.finish())
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

    def test_statistic_of_other_rows(self):
        """Every row divided by the rms of every row, as a reshape makes of it."""
        model = _Model()
        graph = model.subgraph()
        graph.output(
            graph.composite(
                graph.input((3, 1, 16)),
                decomposition=1,
                attributes={"epsilon": 1e-3},
                y=graph.tensor((3, 3, 16)),
            )
        )
        inside = model.subgraph("odml.rms_norm.impl")
        x = inside.input((3, 1, 16))
        _decompose(inside, x, epsilon=1e-3)
        inverse = inside.graph.operators[-1].inputs[1]
        inside.graph.operators.pop()
        turned = inside.tensor((1, 3, 1))
        shape = inside.constant([1, 3, 1], np.int32)
        inside.operator(_OP.RESHAPE, [inverse, shape], [turned])
        y = inside.tensor((3, 3, 16))
        inside.operator(
            _OP.MUL,
            [x, turned],
            [y],
            builtinOptionsType=_OPTIONS.MulOptions,
            builtinOptions=schema.MulOptionsT(),
        )
        inside.output(y)
        self.assertEqual(_num_delegate_nodes(model), 0)
        self.assert_same_as_runtime(model)


class ErrorTest(DelegateTestCase):
    def assert_rejected(self, build, message):
        model = _Model()
        build(model.subgraph())
        with self.assertRaisesRegex((RuntimeError, ValueError), message):
            _interpreter(model)

    @parameterized.named_parameters(
        ("no_options", b"", "FlexBuffers map .*, got 0 bytes"),
        ("garbage", b"garbage options", "not a valid FlexBuffer"),
        ("no_map", flexbuffers.Dumps(1e-6), "must be a FlexBuffers map"),
        ("no_epsilon", flexbuffers.Dumps({}), '"epsilon" is missing'),
        ("unknown", flexbuffers.Dumps({"epsilon": 1.0, "axis": 1}), '"axis"'),
        ("text", flexbuffers.Dumps({"epsilon": "1e-6"}), "must be a number"),
        ("zero", flexbuffers.Dumps({"epsilon": 0.0}), "> 0, got 0"),
        ("negative", flexbuffers.Dumps({"epsilon": -1e-6}), "> 0, got -"),
        ("nan", flexbuffers.Dumps({"epsilon": float("nan")}), "finite.*nan"),
        ("inf", flexbuffers.Dumps({"epsilon": float("inf")}), "finite.*inf"),
    )
    def test_options(self, options, message):
        def build(graph):
            y = graph.rms_norm(graph.input((2, 8)), options=options)
            graph.output(y)

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
            graph.output(graph.rms_norm(graph.input((2, 8)), weight))

        self.assert_rejected(build, message)

    def test_quantized_input(self):
        def build(graph):
            graph.output(graph.rms_norm(graph.input((2, 8), np.int8)))

        self.assert_rejected(build, "x must be float32, float16 .*got int8")

    def test_output_of_another_type(self):
        def build(graph):
            y = graph.tensor((2, 8), np.float16)
            graph.output(graph.rms_norm(graph.input((2, 8)), y=y))

        self.assert_rejected(build, "y must have the type of x, float32, got float16")

    def test_scalar(self):
        self.assert_rejected(
            lambda graph: graph.output(graph.rms_norm(graph.input(()))),
            "at least one dimension",
        )

    def test_residual_of_another_shape(self):
        def build(graph):
            _, y = graph.add_rms_norm(graph.input((2, 8)), graph.input((1, 8)))
            graph.output(y)

        self.assert_rejected(build, r"residual must .*\[2, 8\].*got float32 \[1, 8\]")

    def test_number_of_operands(self):
        def build(graph):
            x = graph.input((2, 8))
            graph.output(graph.rms_norm(x, x, x))

        self.assert_rejected(build, "got 3 inputs")

    def test_output_is_constant(self):
        def build(graph):
            y = graph.constant(np.zeros((2, 8)))
            graph.output(graph.rms_norm(graph.input((2, 8)), y=y))

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
                "ai_edge_rms_norm_variant",
                "tflite_plugin_create_delegate",
                "tflite_plugin_destroy_delegate",
            ],
        )

    def test_variant(self):
        library = ctypes.CDLL(_DELEGATE.value)
        library.ai_edge_rms_norm_variant.restype = ctypes.c_char_p
        self.assertIn(
            library.ai_edge_rms_norm_variant(),
            (b"generic", b"avx2", b"avx512", b"avx512_zen4", b"neon"),
        )


if __name__ == "__main__":
    absltest.main()
