"""Fuses and translates the norms of whole files: .tflite, .litertlm and .task.

rewritten = fuse_file("model.litertlm", "ml_drift")
rewritten.write("fused.litertlm")
"""

import dataclasses
import os
from collections.abc import Sequence

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
      encoding: The encoding that was asked for.
      before: What was in the file.
      after: What is in it now.
      operators_before: Number of operators in all models.
      operators_after: The same, of the result.
    """

    encoding: Encoding
    before: inspection.Inspection
    after: inspection.Inspection
    operators_before: int
    operators_after: int
    _bundle: bundle_lib.Bundle
    _contents: dict[str, bytes]

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
        """What looks like a norm and was left alone, and norms in another encoding."""
        others = (n for n in self.after.norms if n.encoding != self.encoding.value)
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


def _count(result: inspection.Inspection, encoding: Encoding) -> int:
    return sum(norm.encoding == encoding.value for norm in result.norms)


def fuse_file(
    path: str | bytes | os.PathLike[str], encoding: Encoding | str = Encoding.CUSTOM
) -> RewrittenFile:
    """Makes one operator of every norm of a file, as `arn.fuse` does.

    Args:
      path: Of a .tflite, .litertlm or .task.
      encoding: How the norms are written, also those that were operators before.

    Raises:
      ImportError: It is a .litertlm, and litert-lm-builder is not installed.
      OSError: The file cannot be read.
      ValueError: It is something else or damaged, refers to operators by index, or the
        encoding is unknown.
    """
    return _rewrite(path, Encoding(encoding), fuse=True)


def translate_file(
    path: str | bytes | os.PathLike[str], encoding: Encoding | str
) -> RewrittenFile:
    """Writes the operators of a file in one encoding, as `arn.translate` does.

    Decomposed norms that are no translations stay; arguments and errors as for
    `fuse_file`.
    """
    return _rewrite(path, Encoding(encoding), fuse=False)


def _rewrite(
    path: str | bytes | os.PathLike[str], encoding: Encoding, *, fuse: bool
) -> RewrittenFile:
    name = os.fsdecode(path)
    bundle = bundle_lib.read_bundle(path)
    before = inspection.inspect_models(bundle.kind, bundle.models, name)
    contents: dict[str, bytes] = {}
    operators_before = operators_after = 0
    for model in bundle.models:
        tree = flatbuffer.read(
            model.content, f"{name}, {model.name}" if model.name else name
        )
        operators_before += sum(len(subgraph.operators) for subgraph in tree.subgraphs)
        if fuse:
            fuse_model(tree, encoding)
        else:
            encoding_lib.translate_model(tree, encoding)
        operators_after += sum(len(subgraph.operators) for subgraph in tree.subgraphs)
        # Of a model without a change, the file keeps the bytes.
        if any(
            norm.model == model.name and norm.encoding != encoding.value
            for norm in before.norms
        ):
            contents[model.name] = flatbuffer.to_bytes(tree)
    after = inspection.inspect_models(
        bundle.kind,
        (
            bundle_lib.BundledModel(
                model.name, memoryview(contents.get(model.name, model.content))
            )
            for model in bundle.models
        ),
        name,
    )
    return RewrittenFile(
        encoding, before, after, operators_before, operators_after, bundle, contents
    )
