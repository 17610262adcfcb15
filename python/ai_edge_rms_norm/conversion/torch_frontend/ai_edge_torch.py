"""ai-edge-torch 0.7.1, with the MLIR bindings of jaxlib 0.8.

The last release under this name is the last that runs on ARM64 Linux, where
litert-converter has no wheel. It converts with TensorFlow, which importing it imports.

Private here, since nothing public does it:

- `odml_torch` and `lowertools`: the lowering to StableHLO without the converter behind
  it, which takes no custom calls, the registry of lowerings, the MLIR bindings that
  these use, and the names of inputs and outputs.
- `_convert.conversion._run_convert_passes`: the passes that `ai_edge_torch.convert`
  runs. The decompositions before them are in a function that runs all of the rest, too.

There is no later release; tests/tensorflow_backend/tensorflow_ai_edge_torch_test.py
runs them all.
"""

from typing import Any

import torch
from ai_edge_torch import fx_infra
from ai_edge_torch._convert import conversion
from ai_edge_torch.lowertools import common_utils
from ai_edge_torch.odml_torch import export, lowerings
from torch.utils import _pytree as pytree

from ai_edge_rms_norm.conversion.torch_frontend import interface

__all__ = ["AiEdgeTorch"]


class AiEdgeTorch(interface.FrontEnd):
    """The front end of ai-edge-torch."""

    module = "ai_edge_torch"
    name = interface.distribution("ai-edge-torch")
    converter = None
    lowerings = lowerings
    ir = export.ir
    stablehlo = export.stablehlo

    def export_decomposed(
        self, signature: interface.Signature
    ) -> torch.export.ExportedProgram:
        program = torch.export.export(
            signature.module,
            signature.args,
            signature.kwargs,
            dynamic_shapes=signature.dynamic_shapes,
            strict=False,
        )
        program = fx_infra.graph_utils.reset_from_node_meta(program)
        decomposed: torch.export.ExportedProgram = fx_infra.safe_run_decompositions(
            program, fx_infra.decomp.pre_convert_decomp()
        )
        return decomposed

    def run_passes(
        self, program: torch.export.ExportedProgram
    ) -> torch.export.ExportedProgram:
        result: torch.export.ExportedProgram = (
            conversion._run_convert_passes(program)  # noqa: SLF001
        )
        return result

    def lower_to_stablehlo(
        self, program: torch.export.ExportedProgram
    ) -> interface.Lowered:
        lowered: interface.Lowered = export.exported_program_to_mlir(program)
        return lowered

    def serialize_portable_artifact(self, bytecode: bytes, version: str) -> bytes:
        artifact: bytes = export.serialize_portable_artifact(bytecode, version)
        return artifact

    def flat_names(self, specs: list[pytree.TreeSpec], context: Any) -> list[str]:
        return [str(name) for name in common_utils.flat_dict_names(specs, context)]
