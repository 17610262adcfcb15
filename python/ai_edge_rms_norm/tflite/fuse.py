"""Fuses RMSNorm in finished .tflite files.

Found are the decomposed norms of every spelling that `pattern` knows, in either form,
and the composites `odml.rms_norm`. Everything else in the file stays as it is, bit for
bit.
"""

import dataclasses

from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm import tables
from ai_edge_rms_norm.tflite import edit
from ai_edge_rms_norm.tflite.encoding import (
    Encoding,
    RmsNormOp,
    SkippedNorm,
    Survey,
    is_written,
    rewrite,
    why_not,
)

__all__ = ["FusedNorm", "FusionReport", "SkippedNorm", "fuse_model"]


@dataclasses.dataclass(frozen=True)
class FusedNorm:
    """One RMSNorm that was fused.

    Attributes:
      subgraph: Index of the subgraph in the original file.
      operators: Indices there of the operators that became one.
      output: Name of the tensor y.
      hidden_size: Size of the last dimension.
      epsilon: Added to the mean square; the shortest decimal that is the file's
        float32.
      has_weight: Whether y is scaled by a weight.
      source: `decomposed` or `composite`.
    """

    subgraph: int
    operators: tuple[int, ...]
    output: str
    hidden_size: int
    epsilon: float
    has_weight: bool
    source: str


@dataclasses.dataclass(frozen=True)
class FusionReport:
    """The result of `fuse`.

    Attributes:
      fused: The norms that became one operator each, in the order of the file.
      skipped: The norms that were left alone, and why.
      operators_before: Number of operators in all subgraphs.
      operators_after: The same, of the result.
    """

    fused: tuple[FusedNorm, ...]
    skipped: tuple[SkippedNorm, ...]
    operators_before: int
    operators_after: int

    def _repr_html_(self) -> str:
        title = f"{len(self.fused)} fused, {len(self.skipped)} left alone;"
        title += f" {self.operators_before} operators became {self.operators_after}"
        columns = ("subgraph", "norm", "hidden size", "epsilon", "weight", "was")
        rows = [
            [
                str(norm.subgraph),
                norm.output,
                str(norm.hidden_size),
                repr(norm.epsilon),
                "yes" if norm.has_weight else "none",
                norm.source,
            ]
            for norm in self.fused
        ]
        rows += [
            [
                str(norm.subgraph),
                f"operator {norm.operator}",
                "",
                "",
                "",
                f"left alone: {norm.reason}",
            ]
            for norm in self.skipped
        ]
        return tables.html_table(title, columns, rows)


def fuse_model(
    model: schema.ModelT,
    encoding: Encoding = Encoding.CUSTOM,
    *,
    range_safe: bool = True,
) -> FusionReport:
    """Fuses the norms of an object tree, in place; otherwise like `fuse`."""
    before = sum(len(subgraph.operators) for subgraph in model.subgraphs)
    survey = Survey(model)
    norms: list[RmsNormOp] = []
    skipped = list(survey.skipped)
    for norm in survey.norms:
        is_form = (
            norm.encoding != Encoding.DECOMPOSED
            or survey.is_range_safe(norm) == range_safe
        )
        if is_written(norm, encoding) and is_form:
            continue
        reason = why_not(model, norm, encoding)
        if reason is None:
            norms.append(norm)
        else:
            skipped.append(SkippedNorm(norm.subgraph, norm.operator, reason))
    fused = tuple(
        _describe(model, norm)
        for norm in norms
        if norm.encoding in (Encoding.DECOMPOSED, Encoding.COMPOSITE)
    )
    rewrite(model, survey, norms, encoding, range_safe=range_safe)
    return FusionReport(
        fused,
        tuple(sorted(skipped, key=lambda r: (r.subgraph, r.operator))),
        before,
        sum(len(subgraph.operators) for subgraph in model.subgraphs),
    )


def _describe(model: schema.ModelT, norm: RmsNormOp) -> FusedNorm:
    tensors = model.subgraphs[norm.subgraph].tensors
    return FusedNorm(
        norm.subgraph,
        norm.operators,
        edit.text(tensors[norm.outputs[-1]].name),
        int(tensors[norm.inputs[0]].shape[-1]),
        norm.epsilon,
        len(norm.inputs) > 1,
        norm.encoding.value,
    )
