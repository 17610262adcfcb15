"""Fuses and translates the norms of whole files: .tflite, .litertlm and .task.

rewritten = fuse_file("model.litertlm", "ml_drift")
rewritten.write("fused.litertlm")
"""

import dataclasses
import os
from collections.abc import Sequence

from ai_edge_rms_norm import backends
from ai_edge_rms_norm.tflite import bundle as bundle_lib
from ai_edge_rms_norm.tflite import encoding as encoding_lib
from ai_edge_rms_norm.tflite import flatbuffer, inspection
from ai_edge_rms_norm.tflite.encoding import Encoding
from ai_edge_rms_norm.tflite.fuse import fuse_model

__all__ = ["RewrittenFile", "fuse_file", "translate_file"]


@dataclasses.dataclass(frozen=True)
class RewrittenFile:
    """A file with its norms in another encoding, not written yet.

    Attributes:
      encoding: The encoding that was asked for, one of `backends.ENCODINGS`: `plain` is
        `decomposed` in the form that is not range-safe.
      before: The contents before.
      after: The contents now.
      operators_before: Number of operators in all models.
      operators_after: The same, of the result.
    """

    encoding: str
    before: inspection.Inspection
    after: inspection.Inspection
    operators_before: int
    operators_after: int
    _bundle: bundle_lib.Bundle
    _contents: dict[str, bytes]
    _reasons: dict[tuple[str, str], str]

    @property
    def already(self) -> int:
        """How many norms were in the encoding before."""
        return _count(self.before, self.encoding)

    @property
    def changed(self) -> int:
        """How many norms came into the encoding."""
        return _count(self.after, self.encoding) - self.already

    @property
    def left(self) -> tuple[inspection.InspectedNorm, ...]:
        """Look-alikes that were left alone, and norms in another encoding.

        Of the latter, `reason` is empty unless the encoding cannot hold them.
        """
        others = (
            dataclasses.replace(
                norm, reason=self._reasons.get((norm.model, norm.layer), "")
            )
            for norm in self.after.norms
            if norm.encoding != self.encoding
        )
        return (*others, *self.after.skipped)

    def chunks(self) -> Sequence[bytes | bytearray | memoryview]:
        """Returns the bytes of the file, in pieces."""
        return self._bundle.chunks(self._contents)

    def write(self, path: str | bytes | os.PathLike[str]) -> None:
        """Writes the file, completely or not at all; it may be the one that was read.

        Raises:
          OSError: It cannot be written.
        """
        self._bundle.write(path, self._contents)


def _count(result: inspection.Inspection, encoding: str) -> int:
    # A composite without a weight gets one of ones.
    return sum(
        norm.encoding == encoding
        and (norm.has_weight is True or encoding != Encoding.COMPOSITE.value)
        for norm in result.norms
    )


def fuse_file(
    path: str | bytes | os.PathLike[str],
    encoding: Encoding | str = Encoding.CUSTOM,
    *,
    range_safe: bool = True,
) -> RewrittenFile:
    """Makes one operator of every norm of a file, as `arn.fuse` does.

    Args:
      path: Of a .tflite, .litertlm or .task.
      encoding: How the norms are written, also those that were operators before.
      range_safe: As for `arn.fuse`.

    Raises:
      ImportError: It is a .litertlm, and litert-lm-builder is not installed.
      OSError: The file cannot be read.
      ValueError: It is something else or damaged, refers to operators by index, or the
        encoding is unknown.
    """
    return _rewrite(path, Encoding(encoding), range_safe, fuse=True)


def translate_file(
    path: str | bytes | os.PathLike[str],
    encoding: Encoding | str,
    *,
    range_safe: bool = True,
) -> RewrittenFile:
    """Writes the operators of a file in one encoding, as `arn.translate` does.

    Decomposed norms that are not translations stay; arguments and errors as for
    `fuse_file`.
    """
    return _rewrite(path, Encoding(encoding), range_safe, fuse=False)


def _rewrite(
    path: str | bytes | os.PathLike[str],
    encoding: Encoding,
    range_safe: bool,
    *,
    fuse: bool,
) -> RewrittenFile:
    name = os.fsdecode(path)
    bundle = bundle_lib.read_bundle(path)
    before = inspection.inspect_models(bundle.kind, bundle.models, name)
    contents: dict[str, bytes] = {}
    reasons: dict[tuple[str, str], str] = {}
    norms: list[inspection.InspectedNorm] = []
    skipped: list[inspection.InspectedNorm] = []
    operators_before = operators_after = 0
    for model in bundle.models:
        tree = flatbuffer.read(
            model.content, f"{name}, {model.name}" if model.name else name
        )
        operators_before += sum(len(subgraph.operators) for subgraph in tree.subgraphs)
        if fuse:
            report = fuse_model(tree, encoding, range_safe=range_safe)
            refused = {(s.subgraph, s.operator): s.reason for s in report.skipped}
        else:
            encoding_lib.translate_model(tree, encoding, range_safe=range_safe)
            refused = {}
        operators_after += sum(len(subgraph.operators) for subgraph in tree.subgraphs)
        old = [norm for norm in before.norms if norm.model == model.name]
        for norm in old:
            if reason := refused.get((norm.subgraph, norm.operator)):
                reasons[model.name, norm.layer] = reason
        if not old:
            skipped += [norm for norm in before.skipped if norm.model == model.name]
            continue
        content = flatbuffer.to_bytes(tree)
        rewritten = bundle_lib.BundledModel(model.name, memoryview(content))
        result = inspection.inspect_models(bundle.kind, [rewritten], name)
        norms += result.norms
        skipped += result.skipped
        # Of a model without a change, the file keeps the bytes.
        if list(result.norms) != old:
            contents[model.name] = content
    names = tuple(model.name for model in bundle.models)
    after = inspection.Inspection(bundle.kind, names, tuple(norms), tuple(skipped))
    is_plain = encoding == Encoding.DECOMPOSED and not range_safe
    label = backends.PLAIN if is_plain else encoding.value
    return RewrittenFile(
        label,
        before,
        after,
        operators_before,
        operators_after,
        bundle,
        contents,
        reasons,
    )
