"""litert-torch 0.10, with the MLIR bindings of litert-converter.

Private here, since nothing public does it:

- `backend.export`, `backend.lowerings` and `backend.export_utils`: the lowering to
  StableHLO without litert-converter behind it, for the TensorFlow backend, the registry
  of lowerings and the names of inputs and outputs.
- `_convert.core._run_convert_passes`: the passes that `litert_torch.convert` runs.
- `_convert.core.export_torch_signature`, replaced while a pass of this package runs:
  `litert_torch.convert` takes no passes. Its registry of decompositions
  (`fx_infra.decomp`) can make one operator of `aten.rms_norm`, but not of a norm that
  the model computes step by step, as those of Hugging Face's models do, and not of an
  addition and a norm. To export the changed program once more would lose the names of
  its tensors.

tests/conversion/torch_frontend_test.py notices when one of these changes.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import litert_torch
import torch
from litert_converter.mlir import ir
from litert_converter.mlir.dialects import stablehlo
from litert_torch._convert import core
from litert_torch._convert import signature as signature_lib
from litert_torch.backend import export, export_utils, lowerings
from torch.utils import _pytree as pytree

from ai_edge_rms_norm.conversion.torch_frontend import interface

__all__ = ["LitertTorch"]

# Held while `core.export_torch_signature` is another function.
_EXPORT_LOCK = threading.Lock()


@contextlib.contextmanager
def _export_pass(transform: interface.Transform, count: int) -> Iterator[None]:
    """Runs `transform` on the programs that this thread exports in the context.

    Raises:
      RuntimeError: litert-torch did not export `count` programs that way, so that
        the pass did not run on all of them.
    """
    thread, runs = threading.get_ident(), 0

    def export_and_transform(*args: Any, **kwargs: Any) -> torch.export.ExportedProgram:
        nonlocal runs
        program: torch.export.ExportedProgram = export_torch_signature(*args, **kwargs)
        if threading.get_ident() == thread:
            transform(program)
            runs += 1
        return program

    with _EXPORT_LOCK:
        export_torch_signature = core.export_torch_signature
        core.export_torch_signature = export_and_transform
        try:
            yield
        finally:
            core.export_torch_signature = export_torch_signature
    if runs != count:
        raise RuntimeError(
            f"the passes ran on {runs} of {count} signatures: this litert-torch exports"
            " them in another way"
        )


class LitertTorch(interface.FrontEnd):
    """The front end of litert-torch."""

    module = "litert_torch"
    name = interface.distribution("litert-torch")
    converter = interface.distribution("litert-converter")
    lowerings = lowerings
    ir = ir
    stablehlo = stablehlo

    def export_decomposed(
        self, signature: interface.Signature
    ) -> torch.export.ExportedProgram:
        program: torch.export.ExportedProgram = core.export_torch_signature(
            signature_lib.Signature(
                signature.name,
                signature.module,
                signature.args,
                signature.kwargs,
                signature.dynamic_shapes,
            )
        )
        return program

    def run_passes(
        self, program: torch.export.ExportedProgram
    ) -> torch.export.ExportedProgram:
        result: torch.export.ExportedProgram = core._run_convert_passes(  # noqa: SLF001
            program
        )
        return result

    def lower_to_stablehlo(
        self, program: torch.export.ExportedProgram
    ) -> interface.Lowered:
        lowered: interface.Lowered = export.exported_program_to_mlir(
            program, inline_constants=False
        )
        return lowered

    def serialize_portable_artifact(self, bytecode: bytes, version: str) -> bytes:
        artifact: bytes = stablehlo.serialize_portable_artifact_str(bytecode, version)
        return artifact

    def convert(
        self,
        signatures: Sequence[interface.Signature],
        transform: interface.Transform | None = None,
        **options: Any,
    ) -> bytes:
        """Converts signatures into one .tflite with litert-converter.

        Raises:
          ValueError: There is a transform, and the option use_v2.
        """
        converter = litert_torch.Converter()
        for s in signatures:
            converter.signature(
                s.name, s.module, s.args, s.kwargs, dynamic_shapes=s.dynamic_shapes
            )
        passes: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if transform is not None:
            if options.get("use_v2"):
                raise ValueError(
                    "fuse_decomposed and fuse_add do not work with use_v2=True:"
                    " litert-torch then lowers graphs that are not decomposed"
                )
            passes = _export_pass(transform, len(signatures))
        with passes:
            content: bytes = converter.convert(**options).model_content()
        return content

    def flat_names(self, specs: list[pytree.TreeSpec], context: Any) -> list[str]:
        return [str(name) for name in export_utils.flat_dict_names(specs, context)]
