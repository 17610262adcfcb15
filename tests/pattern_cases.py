"""The table of cases: graphs that are RMSNorm, and graphs that look like it.

Each is built once, from x and a weight; the tests give it to `fuse` (as operators of
the model), to `translate` (as the decomposition of a composite), to the delegate (as
both) and, where it is written in torch, to the pass over exported programs. All must
agree on every row.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ai_edge_rms_norm.tflite import flatbuffer
from testing.tflite_builder import Builder

SIZE = 16
ROWS = (2, 3)
EPSILON = 1e-3
WEIGHT = np.linspace(-2, 3, SIZE, dtype=np.float32)

Build = Callable[[Builder, int, int], int | Sequence[int]]
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | tuple]


@dataclasses.dataclass(frozen=True)
class Case:
    """One graph.

    Attributes:
      name: Of the row.
      build: Appends the operators for x and weight; returns y, or y and other outputs.
      torch: The same in torch, where that is possible.
      reason: Why it is not an RMSNorm, as a regular expression; None: it is one.
      epsilon: Of the norm.
      has_weight: Whether the norm has the weight.
      rows: Leading dimensions of x.
      dynamic: Whether the first dimension of x is.
      dtype: Of x.
      is_chain: Whether it is meant as operators of a model.
      is_composite: Whether it is meant as the decomposition of a composite.
      runs: Whether the stock interpreter runs it; it dies of others.
    """

    name: str
    build: Build
    torch: Forward | None = None
    reason: str | None = None
    epsilon: float = EPSILON
    has_weight: bool = True
    rows: tuple[int, ...] = ROWS
    dynamic: bool = False
    dtype: type = np.float32
    is_chain: bool = True
    is_composite: bool = True
    runs: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.rows, SIZE)

    def _input(self, b: Builder) -> int:
        signature = [-1, *self.shape[1:]] if self.dynamic else None
        return b.input(self.shape, self.dtype, signature)

    def chain(self) -> bytes:
        """Returns a model of the operators, the weight a constant."""
        b = Builder()
        outputs = self.build(b, self._input(b), b.constant(WEIGHT))
        return b.content(*([outputs] if isinstance(outputs, int) else outputs))

    def composite(self) -> bytes:
        """Returns a model of one composite, the operators its decomposition."""
        b = Builder()
        x, weight = self._input(b), b.constant(WEIGHT)
        inputs = [x, weight] if self.has_weight else [x]
        with b.branch(b"odml.rms_norm.impl") as inside:
            inner = self._input(b)
            inner_weight = b.input((SIZE,)) if self.has_weight else -1
            outputs = self.build(b, inner, inner_weight)
            b.subgraph.outputs = [outputs] if isinstance(outputs, int) else outputs
            like = b.subgraph.tensors[b.subgraph.outputs[0]]
        y = b.like(like)
        b.composite(inputs, [y], inside, self.epsilon)
        b.subgraph.outputs = [y]
        return flatbuffer.to_bytes(b.model)


def _epsilon(b: Builder) -> int:
    return b.constant(EPSILON)


def _square(b: Builder, x: int) -> int:
    return b("MUL", x, x)


def _shifted(b: Builder, x: int) -> int:
    return b("ADD", b.reduce("MEAN", _square(b, x)), _epsilon(b))


def _inverse(b: Builder, x: int) -> int:
    return b("RSQRT", _shifted(b, x))


def _rms(b: Builder, x: int) -> int:
    return b("SQRT", _shifted(b, x))


def _norm(b: Builder, x: int, inverse: int, w: int) -> int:
    y = b("MUL", x, inverse)
    return y if w < 0 else b("MUL", y, w)


def norm(b: Builder, x: int, w: int = -1) -> int:
    """Appends x * rsqrt(mean(x * x) + EPSILON) * w, without w if it is -1."""
    return _norm(b, x, _inverse(b, x), w)


def _from_shifted(shifted: Callable[[Builder, int], int]) -> Build:
    """x * rsqrt(shifted) * w."""
    return lambda b, x, w: _norm(b, x, b("RSQRT", shifted(b, x)), w)


def _from_mean(mean: Callable[[Builder, int], int]) -> Build:
    return _from_shifted(lambda b, x: b("ADD", mean(b, x), _epsilon(b)))


def _with_epsilon(epsilon: Callable[[Builder], int]) -> Build:
    return _from_shifted(
        lambda b, x: b("ADD", b.reduce("MEAN", _square(b, x)), epsilon(b))
    )


def _root_sum_square(b: Builder, x: int) -> int:
    return b("SQRT", b.reduce("SUM", _square(b, x)))


def _row(b: Builder, x: int) -> list[int]:
    return [*b.shape(x)[:-1], 1]


def _also(select: Callable[[Builder, int, int], int]) -> Build:
    """The norm, and one of its intermediates as an output."""

    def build(b: Builder, x: int, w: int) -> list[int]:
        y = _norm(b, x, _inverse(b, x), w)
        return [y, select(b, x, y)]

    return build


def _intermediate(index: int) -> Callable[[Builder, int, int], int]:
    return lambda b, x, y: b.subgraph.operators[index].outputs[0]


def _half(b: Builder, x: int, w: int) -> int:
    wide = b("CAST", x, dtype=np.float32)
    return b("CAST", _norm(b, wide, _inverse(b, wide), w), dtype=np.float16)


def _repeated(b: Builder, a: int, times: int) -> int:
    for _ in range(times):
        a = b.reshape(a, b.shape(a))
    return a


def _torch_repeated(a: torch.Tensor, times: int) -> torch.Tensor:
    for _ in range(times):
        a = a.clone()
    return a


def _dequantized(b: Builder, data: np.ndarray) -> int:
    stored = b.constant(data, np.float16)
    return b("DEQUANTIZE", stored, dtype=np.float32)


def _dequantized_weight(shape: tuple[int, ...]) -> Build:
    return lambda b, x, w: _norm(
        b, x, _inverse(b, x), _dequantized(b, WEIGHT.reshape(shape))
    )


def _range_safe(
    b: Builder,
    x: int,
    *,
    root: float = EPSILON**0.5,
    other_root: float | None = None,
    reciprocal: bool = False,
    axis: int = -1,
    of: int | None = None,
    normalized: int | None = None,
    square: str = "MUL",
    keep_dims: bool = True,
    casts: bool = False,
) -> int:
    """The range-safe form without weight; the arguments spoil it, or spell it anew."""
    c = b.constant(root)
    d = c if other_root is None else b.constant(other_root)
    absolute = b("ABS", x if of is None else of)
    scale = b("MAXIMUM", b.reduce("REDUCE_MAX", absolute, axis), c)
    if reciprocal:
        inverse = b("DIV", b.constant(1.0), scale)
        z, q = b("MUL", x, inverse), b("MUL", inverse, d)
    else:
        z, q = b("DIV", x, scale), b("DIV", d, scale)
    operands = (z,) if square == "SQUARE" else (z, z)
    mean = b.reduce("MEAN", b(square, *operands), keep_dims=keep_dims)
    shifted = b("ADD", mean, b("MUL", q, q))
    if casts:
        z = b("CAST", z, dtype=np.float32)
    return b("MUL", z if normalized is None else normalized, b("RSQRT", shifted))


def _safe(**kwargs: object) -> Build:
    def build(b: Builder, x: int, w: int) -> int:
        y = _range_safe(b, x, **kwargs)
        return y if w < 0 else b("MUL", y, w)

    return build


def _safe_half(b: Builder, x: int, w: int) -> int:
    wide = b("CAST", x, dtype=np.float32)
    return b("CAST", b("MUL", _range_safe(b, wide), w), dtype=np.float16)


def _int8(b: Builder, x: int, w: int) -> int:
    narrow = b("CAST", x, dtype=np.int8)
    shifted = b("ADD", b.reduce("MEAN", _square(b, narrow)), b.constant(1, np.int8))
    return b("CAST", b("MUL", narrow, b("RSQRT", shifted)), dtype=np.float32)


def _sliced(b: Builder, x: int, w: int) -> int:
    lead = b.shape(x)[:-1]
    part = b(
        "SLICE",
        x,
        b.constant([0] * (len(lead) + 1), np.int32),
        b.constant([*lead, SIZE // 2], np.int32),
        shape=(*lead, SIZE // 2),
    )
    return _norm(b, x, _inverse(b, part), w)


def _mean_square(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean(-1, keepdim=True)


def _torch_shifted(x: torch.Tensor) -> torch.Tensor:
    return _mean_square(x) + EPSILON


def _torch_range_safe(
    x: torch.Tensor, root: float = EPSILON**0.5, other_root: float | None = None
) -> torch.Tensor:
    other_root = root if other_root is None else other_root
    scale = x.abs().amax(-1, keepdim=True).clamp_min(root)
    z = x / scale
    return z * torch.rsqrt(_mean_square(z) + (other_root / scale) ** 2)


def _torch_norm(x: torch.Tensor) -> torch.Tensor:
    return x.norm(dim=-1, keepdim=True)


def _sum(b: Builder, x: int) -> int:
    return b.reduce("SUM", _square(b, x))


def _dot(b: Builder, x: int, other: int | None = None, adjoint: bool = False) -> int:
    """The sum over each row as a product of matrices, of rows and of columns."""
    rows = b.shape(x)[:-1]
    left = b.reshape(x, (*rows, 1, SIZE))
    y = left if adjoint else b.reshape(x if other is None else other, (*rows, SIZE, 1))
    product = b("BATCH_MATMUL", left, y, shape=(*rows, 1, 1), adjY=adjoint)
    return b.reshape(product, (*rows, 1))


def _misshapen(b: Builder, data: np.ndarray, shape: Sequence[int]) -> int:
    """A constant of data that another shape would have."""
    index = b.constant(data, data.dtype)
    b.subgraph.tensors[index].shape = list(shape)
    return index


def _over_n(b: Builder, total: int) -> int:
    return b("DIV", total, b.constant(float(SIZE)))


NORMS = [
    Case(
        "rsqrt",
        norm,
        lambda x, w: x * torch.rsqrt(_torch_shifted(x)) * w,
    ),
    Case(
        "no_weight",
        lambda b, x, w: b("MUL", x, _inverse(b, x)),
        lambda x, w: x * torch.rsqrt(_torch_shifted(x)),
        has_weight=False,
    ),
    # The square.
    Case(
        "square",
        _from_mean(lambda b, x: b.reduce("MEAN", b("SQUARE", x))),
        lambda x, w: x * torch.rsqrt((x * x).mean(2, True) + EPSILON) * w,
    ),
    Case(
        "pow_2",
        _from_mean(lambda b, x: b.reduce("MEAN", b("POW", x, b.constant(2.0)))),
        lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, True) + EPSILON) * w,
    ),
    Case(
        "squared_vector_norm",
        _from_mean(
            lambda b, x: b(
                "DIV", b("SQUARE", b("SQRT", _sum(b, x))), b.constant(float(SIZE))
            )
        ),
        lambda x, w: (
            x
            * torch.rsqrt(
                torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2 / SIZE + EPSILON
            )
            * w
        ),
    ),
    Case(
        "squared_magnitude",
        _from_mean(
            lambda b, x: (lambda a: b.reduce("MEAN", b("MUL", a, a)))(b("ABS", x))
        ),
        lambda x, w: x * torch.rsqrt(_mean_square(x.abs()) + EPSILON) * w,
    ),
    Case(
        "norm_of_magnitudes",
        lambda b, x, w: norm(b, b("ABS", x), w),
        lambda x, w: (lambda a: a * torch.rsqrt(_torch_shifted(a)) * w)(x.abs()),
        is_composite=False,
    ),
    # The mean.
    Case(
        "batch_matmul",
        _from_mean(lambda b, x: _over_n(b, _dot(b, x))),
        lambda x, w: (
            x
            * torch.rsqrt(
                (x[:, :, None, :] @ x[:, :, :, None]).squeeze(-1) / SIZE + EPSILON
            )
            * w
        ),
    ),
    Case(
        "batch_matmul_adjoint",
        _from_mean(lambda b, x: _over_n(b, _dot(b, x, adjoint=True))),
    ),
    Case(
        "sum_times_1_over_n",
        _from_mean(lambda b, x: b("MUL", b.constant(1 / SIZE), _sum(b, x))),
        lambda x, w: x * torch.rsqrt(x.pow(2).sum(-1, True) * (1 / SIZE) + EPSILON) * w,
    ),
    Case(
        "sum_over_n",
        _from_mean(lambda b, x: b("DIV", _sum(b, x), b.constant([float(SIZE)]))),
        lambda x, w: x * torch.rsqrt(x.pow(2).sum(-1, True) / SIZE + EPSILON) * w,
    ),
    Case(
        "einsum",
        _from_mean(lambda b, x: b("DIV", _sum(b, x), b.constant(float(SIZE)))),
        lambda x, w: (
            x
            * torch.rsqrt(torch.einsum("btd,btd->bt", x, x)[..., None] / SIZE + EPSILON)
            * w
        ),
    ),
    Case(
        "mean_times_1",
        _from_mean(
            lambda b, x: b("MUL", b.constant(1.0), b.reduce("MEAN", _square(b, x)))
        ),
        lambda x, w: x * torch.rsqrt(1.0 * x.pow(2).mean(-1, True) + EPSILON) * w,
    ),
    Case(
        "positive_axis",
        _from_mean(lambda b, x: b.reduce("MEAN", _square(b, x), 2)),
    ),
    Case(
        "mean_reshaped",
        _from_mean(
            lambda b, x: b.reshape(
                b.reduce("MEAN", _square(b, x), keep_dims=False), _row(b, x)
            )
        ),
        lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1)[..., None] + EPSILON) * w,
    ),
    Case(
        "shifted_with_dimension_added",
        _from_shifted(
            lambda b, x: b(
                "EXPAND_DIMS",
                b(
                    "ADD",
                    b.reduce("MEAN", _square(b, x), keep_dims=False),
                    _epsilon(b),
                ),
                b.constant(-1, np.int32),
                shape=_row(b, x),
            )
        ),
        lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1) + EPSILON).unsqueeze(-1) * w,
    ),
    Case(
        "statistic_expanded",
        lambda b, x, w: _norm(
            b, x, b.reshape(_inverse(b, x), b.shape(x), "BROADCAST_TO"), w
        ),
        lambda x, w: x * torch.rsqrt(_torch_shifted(x)).expand_as(x) * w,
    ),
    Case(
        "statistic_expanded_and_reshaped",
        lambda b, x, w: _norm(
            b,
            x,
            b.reshape(
                b.reshape(_inverse(b, x), b.shape(x), "BROADCAST_TO"), b.shape(x)
            ),
            w,
        ),
        lambda x, w: x * torch.rsqrt(_torch_shifted(x)).expand_as(x).view(x.shape) * w,
    ),
    # The root.
    Case(
        "sqrt_div",
        lambda b, x, w: b("MUL", w, b("DIV", x, _rms(b, x))),
        lambda x, w: w * (x / torch.sqrt(_torch_shifted(x))),
    ),
    Case(
        "one_over_sqrt",
        lambda b, x, w: _norm(b, x, b("DIV", b.constant(1.0), _rms(b, x)), w),
        lambda x, w: x * (1 / torch.sqrt(_torch_shifted(x))) * w,
    ),
    Case(
        "sqrt_pow_minus_1",
        lambda b, x, w: _norm(b, x, b("POW", _rms(b, x), b.constant(-1.0)), w),
        lambda x, w: x * _torch_shifted(x).sqrt().pow(-1) * w,
    ),
    Case(
        "reciprocal",
        lambda b, x, w: b("MUL", b("DIV", b.constant(1.0), _rms(b, x)), x),
        lambda x, w: _torch_shifted(x).sqrt().reciprocal() * x,
        has_weight=False,
    ),
    Case(
        "sqrt_of_reciprocal",
        lambda b, x, w: _norm(
            b, x, b("SQRT", b("DIV", b.constant(1.0), _shifted(b, x))), w
        ),
        lambda x, w: x * torch.sqrt(1 / _torch_shifted(x)) * w,
    ),
    Case(
        "pow_minus_half",
        lambda b, x, w: _norm(b, x, b("POW", _shifted(b, x), b.constant(-0.5)), w),
        lambda x, w: x * _torch_shifted(x) ** -0.5 * w,
    ),
    Case(
        "over_pow_half",
        lambda b, x, w: b(
            "MUL", b("DIV", x, b("POW", _shifted(b, x), b.constant(0.5))), w
        ),
        lambda x, w: x / _torch_shifted(x) ** 0.5 * w,
    ),
    # The order of the factors.
    Case(
        "weight_times_norm",
        lambda b, x, w: b("MUL", w, b("MUL", _inverse(b, x), x)),
        lambda x, w: w * (torch.rsqrt(_torch_shifted(x)) * x),
    ),
    Case(
        "weighted_inverse",
        lambda b, x, w: b("MUL", x, b("MUL", _inverse(b, x), w)),
        lambda x, w: x * (torch.rsqrt(_torch_shifted(x)) * w),
    ),
    Case(
        "weighted_x",
        lambda b, x, w: b("MUL", b("MUL", x, w), _inverse(b, x)),
        lambda x, w: w * x * torch.rsqrt(_torch_shifted(x)),
    ),
    Case(
        "weighted_x_over_rms",
        lambda b, x, w: b("DIV", b("MUL", w, x), _rms(b, x)),
        lambda x, w: w * x / torch.sqrt(_torch_shifted(x)),
    ),
    Case(
        "weight_over_rms",
        lambda b, x, w: b("MUL", x, b("DIV", w, _rms(b, x))),
        lambda x, w: x * (w / torch.sqrt(_torch_shifted(x))),
    ),
    # Epsilon.
    Case(
        "epsilon_with_dimensions",
        _with_epsilon(lambda b: b.constant(np.full((1, 1, 1), EPSILON))),
        lambda x, w: x * torch.rsqrt(_mean_square(x) + torch.tensor([[[EPSILON]]])) * w,
    ),
    Case(
        "epsilon_reshaped",
        _with_epsilon(lambda b: b.reshape(b.constant([EPSILON]), (1, 1, 1))),
        lambda x, w: (
            x
            * torch.rsqrt(_mean_square(x) + torch.full_like(_mean_square(x), EPSILON))
            * w
        ),
    ),
    Case(
        "epsilon_dequantized",
        _with_epsilon(lambda b: _dequantized(b, np.array(2**-10))),
        epsilon=2**-10,
    ),
    Case(
        "epsilon_cast",
        _with_epsilon(
            lambda b: b("CAST", b.constant(2**-10, np.float16), dtype=np.float32)
        ),
        lambda x, w: (
            x * torch.rsqrt(_mean_square(x) + torch.tensor(2**-10).half().float()) * w
        ),
        epsilon=2**-10,
    ),
    # The weight.
    Case(
        "weight_with_dimensions",
        lambda b, x, w: _norm(
            b, x, _inverse(b, x), b.constant(WEIGHT.reshape(1, 1, SIZE))
        ),
        lambda x, w: x * torch.rsqrt(_torch_shifted(x)) * w[None, None],
        is_composite=False,
    ),
    Case(
        "weight_reshaped",
        lambda b, x, w: _norm(b, x, _inverse(b, x), b.reshape(w, (1, 1, SIZE))),
        lambda x, w: x * torch.rsqrt(_torch_shifted(x)) * w.view(1, 1, -1),
    ),
    Case(
        "weight_expanded",
        lambda b, x, w: _norm(
            b, x, _inverse(b, x), b.reshape(w, b.shape(x), "BROADCAST_TO")
        ),
        lambda x, w: x * torch.rsqrt(_torch_shifted(x)) * w.expand_as(x),
    ),
    Case("weight_dequantized", _dequantized_weight((SIZE,)), is_composite=False),
    Case(
        "weight_dequantized_with_dimensions",
        _dequantized_weight((1, 1, SIZE)),
        is_composite=False,
    ),
    # It stays a MUL.
    Case(
        "weight_of_more_data",
        lambda b, x, w: _norm(
            b, x, _inverse(b, x), _misshapen(b, np.tile(WEIGHT, 2), (SIZE,))
        ),
        has_weight=False,
        is_composite=False,
    ),
    # The types and shapes of x.
    Case(
        "float16",
        _half,
        lambda x, w: (x.float() * torch.rsqrt(_torch_shifted(x.float())) * w).half(),
        dtype=np.float16,
    ),
    Case("one_row", norm, rows=()),
    Case("rank_4", norm, rows=(3, 2, 2)),
    Case(
        "dynamic_rows",
        norm,
        lambda x, w: x * torch.rsqrt(_torch_shifted(x)) * w,
        dynamic=True,
    ),
    # The range-safe form.
    Case("range_safe", _safe(), lambda x, w: _torch_range_safe(x) * w),
    Case(
        "range_safe_no_weight",
        _safe(),
        lambda x, w: _torch_range_safe(x),
        has_weight=False,
        is_chain=False,
    ),
    Case("range_safe_reciprocal", _safe(reciprocal=True)),
    Case("range_safe_square", _safe(square="SQUARE")),
    Case("range_safe_float16", _safe_half, dtype=np.float16),
    # 1 / scale is c / scale for it.
    Case(
        "range_safe_epsilon_1",
        _safe(root=1.0),
        lambda x, w: _torch_range_safe(x, 1.0) * w,
        epsilon=1.0,
    ),
    Case(
        "range_safe_reciprocal_epsilon_1",
        _safe(root=1.0, reciprocal=True),
        epsilon=1.0,
    ),
    Case("range_safe_cast", _safe(casts=True)),
    Case("range_safe_dynamic_rows", _safe(), dynamic=True),
]

# Nothing has to be said about what does not look like a root mean square.
_UNSAID = ".*"
_NOT_LAST = "over the axes"
_NO_NORM = "is not multiplied by x"
_USED = "is used by|is an output"

OTHERS = [
    Case(
        "other_axis",
        _from_mean(lambda b, x: b.reduce("MEAN", _square(b, x), 1)),
        lambda x, w: x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPSILON) * w,
        _NOT_LAST,
    ),
    Case(
        "two_axes",
        _from_mean(lambda b, x: b.reduce("MEAN", _square(b, x), (1, 2))),
        lambda x, w: (
            x * torch.rsqrt(x.square().mean((1, 2), keepdim=True) + EPSILON) * w
        ),
        _NOT_LAST,
    ),
    Case(
        "axes_of_no_elements",
        _from_mean(
            lambda b, x: b(
                "MEAN",
                _square(b, x),
                _misshapen(b, np.array([-1], np.int32), (0,)),
                shape=_row(b, x),
                keepDims=True,
            )
        ),
        None,
        _NOT_LAST,
    ),
    Case(
        "epsilon_outside",
        lambda b, x, w: b(
            "MUL",
            b(
                "DIV",
                x,
                b(
                    "ADD",
                    b("SQRT", b.reduce("MEAN", _square(b, x))),
                    _epsilon(b),
                ),
            ),
            w,
        ),
        lambda x, w: x / (_mean_square(x).sqrt() + EPSILON) * w,
        "epsilon is added to the root",
    ),
    Case(
        "no_epsilon",
        _from_shifted(lambda b, x: b.reduce("MEAN", _square(b, x))),
        lambda x, w: x * torch.rsqrt(_mean_square(x)) * w,
        "no epsilon is added",
    ),
    Case(
        "clamp_for_epsilon",
        _from_shifted(
            lambda b, x: b("MAXIMUM", b.reduce("MEAN", _square(b, x)), _epsilon(b))
        ),
        lambda x, w: x * torch.rsqrt(_mean_square(x).clamp_min(EPSILON)) * w,
        "bounded from below",
    ),
    Case(
        "clamped_root",
        lambda b, x, w: b(
            "MUL",
            b(
                "DIV",
                x,
                b(
                    "MAXIMUM",
                    b("SQRT", b.reduce("MEAN", _square(b, x))),
                    _epsilon(b),
                ),
            ),
            w,
        ),
        lambda x, w: x / _mean_square(x).sqrt().clamp_min(EPSILON) * w,
        "bounded from below",
    ),
    # These two are often called RMSNorm.
    Case(
        "epsilon_outside_scaled_norm",
        lambda b, x, w: b(
            "MUL",
            b(
                "DIV",
                x,
                b(
                    "ADD",
                    b("MUL", _root_sum_square(b, x), b.constant(SIZE**-0.5)),
                    _epsilon(b),
                ),
            ),
            w,
        ),
        lambda x, w: w * (x / (_torch_norm(x) * SIZE**-0.5 + EPSILON)),
        "epsilon is added to the root",
    ),
    Case(
        "normalize",
        lambda b, x, w: b(
            "MUL",
            b(
                "MUL",
                b(
                    "DIV",
                    x,
                    b("MAXIMUM", _root_sum_square(b, x), b.constant(1e-12)),
                ),
                b.constant(SIZE**0.5),
            ),
            w,
        ),
        lambda x, w: torch.nn.functional.normalize(x, dim=-1) * SIZE**0.5 * w,
        "the root is bounded from below.* no epsilon is added",
    ),
    Case(
        "unit_x_times_root_of_n",
        lambda b, x, w: b(
            "MUL",
            b("MUL", b("DIV", x, _root_sum_square(b, x)), b.constant(SIZE**0.5)),
            w,
        ),
        lambda x, w: x / _torch_norm(x) * SIZE**0.5 * w,
        "no epsilon is added",
    ),
    Case(
        "sum_for_mean",
        _from_mean(_sum),
        lambda x, w: x * torch.rsqrt(x.square().sum(-1, True) + EPSILON) * w,
        "sum of squares is not divided",
    ),
    Case(
        "sum_over_another_n",
        _from_mean(lambda b, x: b("DIV", _sum(b, x), b.constant(float(SIZE - 1)))),
        lambda x, w: (
            x * torch.rsqrt(x.square().sum(-1, True) / (SIZE - 1) + EPSILON) * w
        ),
        "sum of 16 squares is multiplied by 0.06",
    ),
    Case(
        "epsilon_0",
        _with_epsilon(lambda b: b.constant(0.0)),
        lambda x, w: x * torch.rsqrt(_mean_square(x) + 0.0) * w,
        "epsilon must be finite and > 0|no epsilon",
    ),
    Case(
        "epsilon_negative",
        _with_epsilon(lambda b: b.constant(-EPSILON)),
        lambda x, w: x * torch.rsqrt(_mean_square(x) + -EPSILON) * w,
        "epsilon must be finite and > 0",
    ),
    Case(
        "epsilon_per_row",
        _with_epsilon(lambda b: b.constant(np.full((*ROWS, 1), EPSILON))),
        None,
        "not a scalar",
    ),
    Case(
        "epsilon_rounded",
        _with_epsilon(
            lambda b: b(
                "CAST", b("CAST", b.constant(1.5), dtype=np.int32), dtype=np.float32
            )
        ),
        None,
        "not a scalar",
    ),
    Case(
        "epsilon_computed",
        _from_shifted(
            lambda b, x: b(
                "ADD",
                b.reduce("MEAN", _square(b, x)),
                b.reduce("MEAN", b("ABS", x)),
            )
        ),
        lambda x, w: (
            x * torch.rsqrt(_mean_square(x) + x.abs().mean(-1, keepdim=True)) * w
        ),
        "not a scalar",
    ),
    Case(
        "other_x",
        lambda b, x, w: _norm(b, b("ABS", x), _inverse(b, x), w),
        lambda x, w: x.abs() * torch.rsqrt(_torch_shifted(x)) * w,
        _NO_NORM,
    ),
    Case(
        "other_square",
        _from_mean(lambda b, x: b.reduce("MEAN", b("MUL", x, b("ABS", x)))),
        lambda x, w: (
            x * torch.rsqrt((x * x.abs()).mean(-1, keepdim=True) + EPSILON) * w
        ),
        _UNSAID,
    ),
    # The file states another type than the operator computes.
    Case(
        "square_of_another_type",
        _from_mean(
            lambda b, x: b.reduce(
                "MEAN", b("MUL", x, x, dtype=np.float16), dtype=np.float32
            )
        ),
        None,
        _UNSAID,
        runs=False,
    ),
    Case(
        "norm_of_another_type",
        lambda b, x, w: b(
            "MUL", b("MUL", x, _inverse(b, x), dtype=np.float16), w, dtype=np.float32
        ),
        None,
        _NO_NORM,
        runs=False,
    ),
    Case(
        "inverse_of_another_type",
        lambda b, x, w: _norm(b, x, b("RSQRT", _shifted(b, x), dtype=np.int32), w),
        None,
        _UNSAID,
        runs=False,
    ),
    Case(
        "magnitude_is_used",
        lambda b, x, w: (
            lambda a: b(
                "ADD",
                _from_mean(lambda b, x: b.reduce("MEAN", b("MUL", a, a)))(b, x, w),
                a,
            )
        )(b("ABS", x)),
        lambda x, w: (lambda a: x * torch.rsqrt(_mean_square(a) + EPSILON) * w + a)(
            x.abs()
        ),
        _NO_NORM,
    ),
    Case(
        "batch_matmul_of_others",
        _from_mean(lambda b, x: _over_n(b, _dot(b, x, b("EXP", x)))),
        lambda x, w: (
            x
            * torch.rsqrt(
                (x[:, :, None, :] @ x.exp()[:, :, :, None]).squeeze(-1) / SIZE + EPSILON
            )
            * w
        ),
        _UNSAID,
    ),
    Case("part_of_the_row", _sliced, None, _NO_NORM),
    Case(
        "square_is_an_output",
        _also(_intermediate(0)),
        lambda x, w: (lambda s: (x * torch.rsqrt(s.mean(-1, True) + EPSILON) * w, s))(
            x * x
        ),
        _USED,
        is_composite=False,
    ),
    Case("mean_is_an_output", _also(_intermediate(1)), None, _USED, is_composite=False),
    Case(
        "shifted_is_an_output", _also(_intermediate(2)), None, _USED, is_composite=False
    ),
    Case(
        "inverse_is_used",
        lambda b, x, w: (lambda r: b("ADD", _norm(b, x, r, w), r))(_inverse(b, x)),
        lambda x, w: (lambda r: x * r * w + r)(torch.rsqrt(_torch_shifted(x))),
        _USED,
    ),
    Case(
        "activation",
        _from_shifted(
            lambda b, x: b(
                "ADD", b.reduce("MEAN", _square(b, x)), _epsilon(b), activation=1
            )
        ),
        None,
        _UNSAID,
    ),
    Case("int8", _int8, None, "is int8", has_weight=False, runs=False),
    Case(
        "range_safe_other_epsilon",
        _safe(other_root=0.5),
        lambda x, w: _torch_range_safe(x, other_root=0.5) * w,
        "epsilon, .* is not a scalar",
    ),
    Case(
        "range_safe_other_axis",
        _safe(axis=1),
        lambda x, w: (
            lambda s: (
                x / s * torch.rsqrt(_mean_square(x / s) + (EPSILON**0.5 / s) ** 2) * w
            )
        )(x.abs().amax(1, keepdim=True).clamp_min(EPSILON**0.5)),
        "epsilon, .* is not a scalar",
    ),
    # Of shape [n, n], too, but each row is shifted by the statistics of all.
    Case(
        "range_safe_shift_along_rows",
        _safe(keep_dims=False),
        None,
        "epsilon, .* is not a scalar",
        rows=(SIZE,),
    ),
    Case(
        "range_safe_x_unscaled",
        lambda b, x, w: b("MUL", _range_safe(b, x, normalized=x), w),
        None,
        _NO_NORM,
    ),
    Case(
        "range_safe_of_something_else",
        lambda b, x, w: b("MUL", _range_safe(b, x, of=b("EXP", x)), w),
        None,
        "epsilon, .* is not a scalar",
    ),
]

# x and y of a composite must have these in common.
OTHERS += [
    Case(
        "float16_to_float32",
        lambda b, x, w: norm(b, b("CAST", x, dtype=np.float32), w),
        None,
        "its first input is float16 .*, its output float32",
        dtype=np.float16,
        is_chain=False,
    ),
    Case(
        "another_rank",
        lambda b, x, w: norm(b, b.reshape(x, (1, *ROWS, SIZE)), w),
        None,
        r"its first input is float32 \[2, 3, 16\], its output float32 \[1, 2",
        is_chain=False,
    ),
    Case(
        "too_long",
        lambda b, x, w: _norm(b, x, _repeated(b, _inverse(b, x), 60), w),
        lambda x, w: x * _torch_repeated(torch.rsqrt(_torch_shifted(x)), 70) * w,
        "more than 64 operators",
    ),
]


def norm_graph(
    has_weight: bool = True, signature: Sequence[int] | None = None
) -> tuple[Builder, int]:
    """Returns a model of one norm of x of shape [2, 3, SIZE], and y.

    Its operators are MUL, MEAN, ADD, RSQRT, MUL and, for the weight, MUL.
    """
    b = Builder()
    x = b.input((*ROWS, SIZE), signature=signature)
    return b, norm(b, x, b.constant(WEIGHT) if has_weight else -1)


def if_graph() -> Builder:
    """y = rms_norm(x) if condition else x + x, the norm decomposed."""
    b, shape = Builder(), (2, SIZE)
    condition, x = b.input((1,), np.bool_), b.input(shape)
    with b.branch(b"then") as then_branch:
        b.subgraph.outputs = [norm(b, b.input(shape), b.constant(WEIGHT))]
    with b.branch(b"else") as else_branch:
        z = b.input(shape)
        b.subgraph.outputs = [b("ADD", z, z)]
    y = b("IF", condition, x, shape=shape, dtype=np.float32)
    options = b.subgraph.operators[-1].builtinOptions
    options.thenSubgraphIndex = then_branch
    options.elseSubgraphIndex = else_branch
    b.subgraph.outputs = [y]
    return b


def circle_graph() -> bytes:
    """An RMSNorm up to the root, which goes into nodes that need each other."""
    b, _ = norm_graph()
    inverse = b.subgraph.operators[3].outputs[0]
    b.subgraph.operators = b.subgraph.operators[:4]
    back = b.tensor((*ROWS, 1))
    forth = b("RESHAPE", inverse, back, shape=(*ROWS, 1))
    b("CAST", forth, shape=(*ROWS, 1))
    b.subgraph.operators[-1].outputs = [back]
    return b.content(forth)
