"""One norm in each encoding, with what it should compute, for the tests of backends."""

import numpy as np

from ai_edge_rms_norm.tflite import encoding, op_options
from testing.tflite_builder import Builder

EPSILON = 1e-6
# The norm as converters write it: mean of squares, rsqrt, two products.
PLAIN = "plain"
ENCODINGS = (*(e.value for e in encoding.Encoding), PLAIN)


def weight_of(size: int) -> np.ndarray:
    """Returns the weight of a norm with this hidden size."""
    return np.linspace(0.5, 1.5, size, dtype=np.float32)


def random_input(shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Returns scale * N(0, 1) in float32, the same every time."""
    x = np.random.default_rng(0).standard_normal(shape)
    return (scale * x).astype(np.float32)


def reference(x: np.ndarray, weight: bool = True, epsilon=EPSILON) -> np.ndarray:
    """Returns rms_norm(x) in float64."""
    x = x.astype(np.float64)
    y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return y * weight_of(x.shape[-1]) if weight else y


def relative_error(y: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest error in units of the largest expected output."""
    return float(np.abs(y - expected).max() / np.abs(expected).max())


def norm(
    encoding_name: str,
    shape: tuple[int, ...],
    *,
    weight: bool = True,
    epsilon: float = EPSILON,
    builder: Builder | None = None,
    x: int | None = None,
) -> bytes:
    """Returns a .tflite with one float32 norm.

    A composite without weight is one as other converters write it: the package always
    gives a composite a weight.

    Args:
      encoding_name: One of ENCODINGS.
      shape: The shape of x.
      weight: Whether the norm has a weight, `weight_of(shape[-1])`.
      epsilon: The norm's epsilon.
      builder: A model that has x already, as the tensor of this index.
      x: The index; None for a new input.
    """
    graph = builder or Builder()
    x = graph.input(shape) if x is None else x
    operands = [x, graph.constant(weight_of(shape[-1]))] if weight else [x]
    if encoding_name == PLAIN:
        return graph.content(_plain(graph, operands, epsilon))
    if encoding_name == encoding.Encoding.COMPOSITE and not weight:
        return graph.content(_weightless_composite(graph, x, epsilon))
    y = graph.tensor(shape, signature=graph.signature(x))
    options = op_options.encode_custom_options(epsilon)
    graph.custom(op_options.RMS_NORM, operands, [y], options)
    return encoding.translate(graph.content(y), encoding_name)


def _plain(graph: Builder, operands: list[int], epsilon: float) -> int:
    x, *weights = operands
    shape = graph.shape(x)
    axis = graph.constant([len(shape) - 1], np.int32)
    mean = graph("MEAN", graph("MUL", x, x), axis, shape=[*shape[:-1], 1])
    y = graph("MUL", x, graph("RSQRT", graph("ADD", mean, graph.constant(epsilon))))
    for weight in weights:
        y = graph("MUL", y, weight)
    return y


def _weightless_composite(graph: Builder, x: int, epsilon: float) -> int:
    shape = graph.shape(x)
    with graph.branch(b"odml.rms_norm.impl") as decomposition:
        graph.subgraph.outputs = [_plain(graph, [graph.input(shape)], epsilon)]
    y = graph.tensor(shape)
    graph.composite([x], [y], decomposition, epsilon)
    return y
