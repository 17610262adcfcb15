"""RMSNorm as TensorFlow, Keras or onnx2tf write it, built operator by operator."""

import contextlib

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm.tflite import edit, flatbuffer

_OP = schema.BuiltinOperator
_OPTIONS = schema.BuiltinOptions
_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}
SIZE = 16


class Graph:
    """Writes a .tflite operator by operator."""

    def __init__(self):
        self.subgraph = self._empty(b"main")
        self.model = schema.ModelT(
            version=3,
            operatorCodes=[],
            buffers=[schema.BufferT()],
            subgraphs=[self.subgraph],
        )

    @staticmethod
    def _empty(name: bytes) -> schema.SubGraphT:
        return schema.SubGraphT(
            tensors=[], inputs=[], outputs=[], operators=[], name=name
        )

    def tensor(self, shape, dtype=np.float32, data=None, signature=None) -> int:
        buffer = 0
        if data is not None:
            content = np.frombuffer(np.asarray(data, dtype).tobytes(), np.uint8)
            buffer = edit.append_buffer(self.model, content)
        self.subgraph.tensors.append(
            schema.TensorT(
                shape=list(shape),
                shapeSignature=signature,
                type=_TYPES[np.dtype(dtype)],
                buffer=buffer,
                name=f"t{len(self.subgraph.tensors)}".encode(),
            )
        )
        return len(self.subgraph.tensors) - 1

    def constant(self, data, dtype=np.float32) -> int:
        return self.tensor(np.shape(data), dtype, data)

    def input(self, shape, dtype=np.float32, signature=None) -> int:
        index = self.tensor(shape, dtype, signature=signature)
        self.subgraph.inputs.append(index)
        return index

    @contextlib.contextmanager
    def branch(self, name: bytes):
        """Writes to a new subgraph meanwhile; yields its index."""
        outer = self.subgraph
        self.subgraph = self._empty(name)
        self.model.subgraphs.append(self.subgraph)
        yield len(self.model.subgraphs) - 1
        self.subgraph = outer

    def shape(self, tensor) -> list[int]:
        return list(self.subgraph.tensors[tensor].shape)

    def __call__(self, name, *inputs, shape=None, dtype=np.float32, activation=0):
        """Appends the operator `name`; returns its output."""
        options, options_type = None, 0
        option_name = {"MEAN": "Reducer", "EXPAND_DIMS": "ExpandDims"}.get(
            name, name.capitalize()
        )
        if hasattr(_OPTIONS, f"{option_name}Options"):
            options_type = getattr(_OPTIONS, f"{option_name}Options")
            options = getattr(schema, f"{option_name}OptionsT")()
        if activation:
            options.fusedActivationFunction = activation
        if shape is None:
            shape = np.broadcast_shapes(*(self.shape(i) for i in inputs))
        if name == "MEAN":
            options.keepDims = len(shape) == len(self.shape(inputs[0]))
        output = self.tensor(shape, dtype)
        self.subgraph.operators.append(
            schema.OperatorT(
                opcodeIndex=edit.intern_operator_code(self.model, getattr(_OP, name)),
                inputs=list(inputs),
                outputs=[output],
                builtinOptions=options,
                builtinOptionsType=options_type,
            )
        )
        return output

    def content(self, *outputs) -> bytes:
        self.subgraph.outputs = list(outputs)
        return flatbuffer.to_bytes(self.model)


WEIGHT = np.linspace(-2, 3, SIZE, dtype=np.float32)
EPSILON = 1e-3


def tensorflow_graph(
    *,
    square="MUL",
    root="RSQRT",
    order="x inverse weight",
    keep_dims=True,
    weight_rank=1,
    dequantize=False,
    axis=-1,
    epsilon=EPSILON,
    x_shape=(2, 3, SIZE),
    signature=None,
    activation=0,
    also=None,
    reshaped=False,
):
    """An RMSNorm as TensorFlow, Keras or onnx2tf would write it."""
    g = Graph()
    x = g.input(x_shape, signature=signature)
    lead = x_shape[:-1]
    flat = x
    if reshaped:  # litert-torch leaves leading ones out before a broadcast.
        to = g.constant((1, *x_shape), np.int32)
        x = g("RESHAPE", flat, to, shape=(1, *x_shape))
        x_shape = (1, *x_shape)
        lead = x_shape[:-1]
    squares = {
        "MUL": lambda: g("MUL", flat, x),
        "SQUARE": lambda: g("SQUARE", x),
        "POW": lambda: g("POW", x, g.constant(2.0)),
    }
    squared = squares[square]()
    statistic_shape = (*lead, 1)
    if axis not in (-1, len(x_shape) - 1):
        statistic_shape = tuple(1 if i == axis else n for i, n in enumerate(x_shape))
    mean = g(
        "MEAN",
        squared,
        g.constant([axis], np.int32),
        shape=statistic_shape if keep_dims else lead,
    )
    shifted = g("ADD", g.constant(epsilon), mean, activation=activation)
    if not keep_dims:
        to = g.constant(statistic_shape, np.int32)
        shifted = g("RESHAPE", shifted, to, shape=statistic_shape)
    y = None
    if root == "SQRT DIV":
        y = g("DIV", x, g("SQRT", shifted))
    elif root == "SQRT 1 DIV":
        inverse = g("DIV", g.constant(1.0), g("SQRT", shifted))
    elif root == "POW":
        inverse = g("POW", shifted, g.constant(-0.5))
    else:
        inverse = g(root, shifted)
    data = WEIGHT.reshape((1,) * (weight_rank - 1) + (SIZE,))
    if dequantize:
        stored = g.constant(data.astype(np.float16), np.float16)
        weight = g("DEQUANTIZE", stored, shape=data.shape)
    else:
        weight = g.constant(data)
    if y is not None:
        y = g("MUL", weight, y)
    elif order == "x inverse weight":
        y = g("MUL", g("MUL", inverse, x), weight)
    elif order == "inverse weight x":
        y = g("MUL", x, g("MUL", inverse, weight))
    elif order == "x weight inverse":
        y = g("MUL", g("MUL", x, weight), inverse)
    else:
        y = g("MUL", x, inverse)
    outputs = [y]
    if also:
        outputs.append({"mean": mean, "shifted": shifted, "square": squared}[also])
    return g, outputs


def if_graph() -> Graph:
    """y = rms_norm(x) if condition else x + x, the norm in primitive operators."""
    g, shape = Graph(), (2, SIZE)
    condition, x = g.input((1,), np.bool_), g.input(shape)
    with g.branch(b"then") as then_branch:
        z = g.input(shape)
        mean = g("MEAN", g("MUL", z, z), g.constant([1], np.int32), shape=(2, 1))
        inverse = g("RSQRT", g("ADD", mean, g.constant(EPSILON)))
        y = g("MUL", g("MUL", z, inverse), g.constant(WEIGHT))
        g.subgraph.outputs = [y]
    with g.branch(b"else") as else_branch:
        z = g.input(shape)
        g.subgraph.outputs = [g("ADD", z, z)]
    y = g("IF", condition, x, shape=shape)
    options = g.subgraph.operators[-1].builtinOptions
    options.thenSubgraphIndex = then_branch
    options.elseSubgraphIndex = else_branch
    g.subgraph.outputs = [y]
    return g


def circle_graph() -> bytes:
    """An RMSNorm up to the root, which goes into nodes that need each other."""
    g, _ = tensorflow_graph()
    inverse = g.subgraph.operators[3].outputs[0]
    g.subgraph.operators = g.subgraph.operators[:4]
    back = g.tensor((2, 3, 1))
    forth = g("RESHAPE", inverse, back, shape=(2, 3, 1))
    g("CAST", forth, shape=(2, 3, 1))
    g.subgraph.operators[-1].outputs = [back]
    return g.content(forth)
