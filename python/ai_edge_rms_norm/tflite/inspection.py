"""Says which norms a file holds, and how each of them runs where.

for norm in inspect("model.tflite").norms:
    print(norm.layer, norm.encoding, norm.reason)
"""

import collections
import dataclasses
import os
import re
from collections.abc import Iterable, Mapping

from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm import backends
from ai_edge_rms_norm.tflite import bundle as bundle_lib
from ai_edge_rms_norm.tflite import edit, flatbuffer
from ai_edge_rms_norm.tflite.encoding import Encoding, RmsNormOp, SkippedNorm, Survey
from ai_edge_rms_norm.tflite.graph import shape_of, type_name

__all__ = [
    "Inspection",
    "InspectedNorm",
    "RuntimeReport",
    "inspect",
    "inspect_models",
    "runtimes",
]


# The Python modules of the classes that litert-torch names layers by.
_MODULES = re.compile(r"(?<![^/])(?:[a-z_]\w*\.)+(?=[A-Z])")


@dataclasses.dataclass(frozen=True)
class InspectedNorm:
    """A norm in a file, or what looks like one and is left alone.

    Attributes:
      model: Name of the .tflite in a bundle, empty for a .tflite itself.
      signatures: Names of the signatures that are the norm's subgraph.
      subgraph: Index of its subgraph.
      operator: Index of the operator that computes the result; of what is left alone,
        the one that computes the root, or the composite.
      encoding: One of `backends.ENCODINGS`; None for what is left alone.
      call_target: `ai_edge_torch.rms_norm` or `ai_edge_torch.add_rms_norm`; None for
        what is left alone, like the next four.
      epsilon: Added to the mean square.
      hidden_size: Size of the last dimension, -1 if the run decides.
      has_weight: Whether the result is scaled by a weight.
      shape: Shape of x, with -1 for sizes that the run decides.
      dtype: Type of the elements of x, as in float32.
      layer: Name of the tensor that is the result.
      num_operators: Operators that the norm consists of.
      reason: Why it is left alone, empty for norms.
    """

    model: str
    signatures: tuple[str, ...]
    subgraph: int
    operator: int
    encoding: str | None
    call_target: str | None
    epsilon: float | None
    hidden_size: int | None
    has_weight: bool | None
    shape: tuple[int, ...] | None
    dtype: str
    layer: str
    num_operators: int
    reason: str

    @property
    def title(self) -> str:
        """The layer as reports show it: without the modules of its classes."""
        return _MODULES.sub("", self.layer).rstrip(";")

    @property
    def is_fused(self) -> bool:
        """Whether the norm is one operator without a decomposition."""
        return self.encoding not in (
            None,
            Encoding.COMPOSITE.value,
            Encoding.DECOMPOSED.value,
            backends.PLAIN,
        )


@dataclasses.dataclass(frozen=True)
class RuntimeReport:
    """How a runtime treats the norms of a file.

    Attributes:
      runtime: A key of `backends.RUNTIMES`.
      outcomes: Number of norms by what becomes of them.
      notes: What one has to know about it.
    """

    runtime: str
    outcomes: Mapping[backends.Outcome, int]
    notes: tuple[str, ...]

    @property
    def loads(self) -> bool:
        """Whether the norms let the runtime load and run the file."""
        bad = (backends.Outcome.UNSUPPORTED, backends.Outcome.CRASH)
        return not any(outcome in self.outcomes for outcome in bad)

    @property
    def is_right(self) -> bool:
        """Whether every norm is known to give the right result."""
        return all(outcome.is_right for outcome in self.outcomes)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The contents of a file.

    Attributes:
      kind: `tflite`, `litertlm` or `task`.
      models: Names of the .tflite in it.
      norms: The norms, in the order of the file.
      skipped: What looks like a norm and is left alone, with the reason.
    """

    kind: str
    models: tuple[str, ...]
    norms: tuple[InspectedNorm, ...]
    skipped: tuple[InspectedNorm, ...]

    def runtimes(self) -> tuple[RuntimeReport, ...]:
        """Returns how each known runtime treats the norms."""
        return runtimes(self.norms)


def runtimes(norms: Iterable[InspectedNorm]) -> tuple[RuntimeReport, ...]:
    """Returns how each runtime of `backends.RUNTIMES` treats norms."""
    kinds = [(n.encoding, bool(n.has_weight)) for n in norms if n.encoding is not None]
    reports = []
    for runtime in backends.RUNTIMES:
        cells = [backends.support(*kind, runtime) for kind in kinds]
        outcomes = collections.Counter(cell.outcome for cell in cells)
        notes = dict.fromkeys(cell.note for cell in cells if cell.note)
        reports.append(RuntimeReport(runtime, outcomes, tuple(notes)))
    return tuple(reports)


def inspect(path: str | bytes | os.PathLike[str]) -> Inspection:
    """Lists every norm of a .tflite, .litertlm or .task.

    Raises:
      ImportError: It is a .litertlm, and litert-lm-builder is not installed.
      OSError: The file cannot be read.
      ValueError: It is something else, or damaged.
    """
    bundle = bundle_lib.read_bundle(path)
    return inspect_models(bundle.kind, bundle.models, os.fsdecode(path))


def inspect_models(
    kind: str, models: Iterable[bundle_lib.BundledModel], name: str = "model"
) -> Inspection:
    """Lists every norm of the models of a file that is open already.

    Args:
      kind: `tflite`, `litertlm` or `task`.
      models: The models in it.
      name: What to call the file in errors.

    Raises:
      ValueError: A model is damaged.
    """
    names: list[str] = []
    norms: list[InspectedNorm] = []
    skipped: list[InspectedNorm] = []
    for model in models:
        full_name = f"{name}, {model.name}" if model.name else name
        tree = flatbuffer.read(model.content, full_name)
        survey = Survey(tree)
        norms += [_norm(tree, model.name, survey, norm) for norm in survey.norms]
        skipped += [_skipped(tree, model.name, item) for item in survey.skipped]
        names.append(model.name)
    return Inspection(kind, tuple(names), tuple(norms), tuple(skipped))


def _signatures(model: schema.ModelT, subgraph: int) -> tuple[str, ...]:
    return tuple(
        edit.text(entry.signatureKey)
        for entry in model.signatureDefs or ()
        if entry.subgraphIndex == subgraph
    )


def _norm(
    model: schema.ModelT, name: str, survey: Survey, norm: RmsNormOp
) -> InspectedNorm:
    tensors = model.subgraphs[norm.subgraph].tensors
    x = tensors[norm.inputs[0]]
    shape = tuple(shape_of(x))
    encoding = norm.encoding.value
    if norm.encoding == Encoding.DECOMPOSED and not survey.is_range_safe(norm):
        encoding = backends.PLAIN
    # An addition has one input more and one output more.
    has_weight = len(norm.inputs) > len(norm.outputs)
    return InspectedNorm(
        name,
        _signatures(model, norm.subgraph),
        norm.subgraph,
        norm.operator,
        encoding,
        norm.call_target,
        norm.epsilon,
        shape[-1] if shape else None,
        has_weight,
        shape,
        type_name(x.type),
        edit.text(tensors[norm.outputs[-1]].name),
        len(norm.operators),
        "",
    )


def _skipped(model: schema.ModelT, name: str, item: SkippedNorm) -> InspectedNorm:
    subgraph = model.subgraphs[item.subgraph]
    (output, *_) = subgraph.operators[item.operator].outputs
    tensor = subgraph.tensors[output]
    return InspectedNorm(
        name,
        _signatures(model, item.subgraph),
        item.subgraph,
        item.operator,
        None,
        None,
        None,
        None,
        None,
        None,
        type_name(tensor.type),
        edit.text(tensor.name),
        1,
        item.reason,
    )
