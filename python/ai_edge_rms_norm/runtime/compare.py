"""Compares the outputs of two models on the same inputs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ai_edge_rms_norm import tables

__all__ = ["Comparison", "OutputDifference", "compare_outputs"]

_COLUMNS = (
    "output",
    "max abs error",
    "max rel error",
    "cosine",
    "non-finite",
    "of the other",
    "close",
)


@dataclasses.dataclass(frozen=True)
class OutputDifference:
    """How far two values of an output are apart.

    Attributes:
      name: Of the output.
      max_abs_error: The largest |a - b| where both are finite.
      max_rel_error: The largest |a - b| / |b| where both are finite and b is not 0.
      cosine: Of a and b as vectors, where both are finite; 1 if both are 0 there, and
        0 if one is.
      non_finite: Number of infinite or NaN elements of a.
      other_non_finite: The same of b.
      close: Whether |a - b| <= atol + rtol * max|b| for every element, and what is not
        finite is the same in both. The bound is that of the output, not of its element,
        since what is close to 0 is the difference of large numbers in many models.
    """

    name: str
    max_abs_error: float
    max_rel_error: float
    cosine: float
    non_finite: int
    other_non_finite: int
    close: bool


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far the outputs of two models are apart.

    Attributes:
      outputs: One for each output, in the order of the model.
      rtol: Relative tolerance of `close`.
      atol: Absolute tolerance of `close`.
    """

    outputs: tuple[OutputDifference, ...]
    rtol: float
    atol: float

    @property
    def close(self) -> bool:
        """Whether every output is close."""
        return all(output.close for output in self.outputs)

    def rows(self) -> tuple[tuple[str, ...], list[list[str]]]:
        """Returns the names of the columns of the table of outputs, and its rows."""
        return _COLUMNS, [
            [
                output.name,
                f"{output.max_abs_error:.3g}",
                f"{output.max_rel_error:.3g}",
                f"{output.cosine:.8f}",
                str(output.non_finite),
                str(output.other_non_finite),
                "yes" if output.close else "no",
            ]
            for output in self.outputs
        ]

    def summary(self) -> str:
        """Returns the verdict, one line."""
        apart = sum(not output.close for output in self.outputs)
        verdict = f"{apart} of {len(self.outputs)} outputs are apart"
        if not apart:
            verdict = f"all {len(self.outputs)} outputs are close"
        return f"{verdict}: rtol {self.rtol:g} of the largest |b|, atol {self.atol:g}"

    def to_dict(self) -> dict[str, Any]:
        """Returns it as what JSON can hold."""
        return {**dataclasses.asdict(self), "close": self.close}

    def __str__(self) -> str:
        return f"{tables.text_table(*self.rows())}\n\n{self.summary()}"

    def _repr_html_(self) -> str:
        return tables.html_table(self.summary(), *self.rows())


def compare_outputs(
    a: Mapping[str, np.ndarray],
    b: Mapping[str, np.ndarray],
    *,
    rtol: float,
    atol: float,
) -> Comparison:
    """Compares outputs by name, in float64.

    Raises:
      ValueError: A name or a shape is not the same in both, or a tolerance is negative.
    """
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"rtol and atol must be at least 0, got {rtol} and {atol}")
    if set(a) != set(b):
        raise ValueError(f"the outputs are {sorted(a)}, those of the other {sorted(b)}")
    return Comparison(
        tuple(_difference(name, a[name], b[name], rtol, atol) for name in a),
        rtol,
        atol,
    )


def _difference(
    name: str, a: np.ndarray, b: np.ndarray, rtol: float, atol: float
) -> OutputDifference:
    if a.shape != b.shape:
        raise ValueError(
            f"output {name!r} has the shape {list(a.shape)}, that of the other"
            f" {list(b.shape)}"
        )
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    finite = np.isfinite(a) & np.isfinite(b)
    x, y = a[finite], b[finite]
    errors = np.abs(x - y)
    max_abs_error = float(errors.max(initial=0))
    is_not_zero = y != 0
    relative = errors[is_not_zero] / np.abs(y[is_not_zero])
    bound = atol + rtol * float(np.abs(y).max(initial=0))
    same = np.array_equal(a[~finite], b[~finite], equal_nan=True)
    return OutputDifference(
        name,
        max_abs_error,
        float(relative.max(initial=0)),
        _cosine(x, y),
        int((~np.isfinite(a)).sum()),
        int((~np.isfinite(b)).sum()),
        same and max_abs_error <= bound,
    )


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    # Scaled, so that no square overflows.
    scales = [float(np.abs(v).max(initial=0)) for v in (x, y)]
    if 0 in scales:
        return float(scales[0] == scales[1])
    x, y = x / scales[0], y / scales[1]
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
