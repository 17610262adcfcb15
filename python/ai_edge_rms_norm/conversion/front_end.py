"""The PyTorch front end: what differs between its two generations.

litert-torch (0.9 and later) lowers with the MLIR bindings of litert-converter, which
has no wheel for ARM64 Linux. ai-edge-torch 0.7.1, its last release under the old name,
lowers with the bindings of jaxlib 0.8 and runs there. Both are private interfaces, so
the versions are pinned; nothing else in the package knows which one is installed.

Attributes:
  MODULE: Name of the front end's package.
  NAME: Distribution and version of the front end, for messages.
  CONVERTER: Distribution and version of litert-converter; None without it.
  ir: The MLIR bindings, a module like `mlir.ir`.
  stablehlo: The bindings of the StableHLO dialect.
  lower: Decorator that registers the lowering of a torch operator.
  Signature: Class of (name, module, args, kwargs, dynamic_shapes).
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ai_edge_rms_norm.conversion import tensorflow_vhlo_export

__all__ = [
    "CONVERTER",
    "MODULE",
    "NAME",
    "Signature",
    "export",
    "export_pass",
    "input_names",
    "ir",
    "lower",
    "lower_to_stablehlo",
    "output_names",
    "serialize_vhlo",
    "stablehlo",
]

# Older than the StableHLO of every TensorFlow that is supported, so that all of them
# can read it, and new enough for everything that the lowerings emit. Compatibility of
# portable artifacts: https://openxla.org/stablehlo/compatibility.
_VHLO_VERSION = "1.5.0"
# Held while what litert-torch calls is another function.
_EXPORT_LOCK = threading.Lock()


def _distribution(name: str) -> str:
    return f"{name} {importlib.metadata.version(name)}"


if importlib.util.find_spec("litert_torch"):
    from litert_converter.mlir import ir
    from litert_converter.mlir.dialects import stablehlo
    from litert_torch._convert import core as _conversion
    from litert_torch._convert.signature import Signature
    from litert_torch.backend import export as _export
    from litert_torch.backend.export_utils import flat_dict_names as _flat_dict_names
    from litert_torch.backend.lowerings import lower

    MODULE = "litert_torch"
    NAME = _distribution("litert-torch")
    CONVERTER = _distribution("litert-converter")
    _serialize_portable_artifact = stablehlo.serialize_portable_artifact_str

    def _export_signature(signature: Signature) -> torch.export.ExportedProgram:
        return _conversion.export_torch_signature(signature)

    @contextlib.contextmanager
    def export_pass(
        transform: Callable[[torch.export.ExportedProgram], object],
    ) -> Iterator[None]:
        """Runs `transform` on what `litert_torch` exports inside of the context.

        litert-torch takes no passes of others, and exporting the changed module once
        more would lose the names of its tensors.
        """

        def export_and_transform(*args, **kwargs) -> torch.export.ExportedProgram:
            program = export_torch_signature(*args, **kwargs)
            transform(program)
            return program

        with _EXPORT_LOCK:
            export_torch_signature = _conversion.export_torch_signature
            _conversion.export_torch_signature = export_and_transform
            try:
                yield
            finally:
                _conversion.export_torch_signature = export_torch_signature

    def _lower_exported(program: torch.export.ExportedProgram):
        # Parameters as arguments: TensorFlow gets them as variables.
        return _export.exported_program_to_mlir(program, inline_constants=False)

# ai-edge-torch 0.7.2 has the old name, but installs litert-torch.
elif importlib.util.find_spec("ai_edge_torch"):
    # It imports TensorFlow.
    tensorflow_vhlo_export.load()

    from ai_edge_torch import fx_infra as _fx_infra
    from ai_edge_torch._convert import conversion as _conversion
    from ai_edge_torch._convert.signature import Signature
    from ai_edge_torch.lowertools.common_utils import (
        flat_dict_names as _flat_dict_names,
    )
    from ai_edge_torch.odml_torch import export as _export
    from ai_edge_torch.odml_torch.lowerings import lower
    from jax._src.lib.mlir import ir
    from jax._src.lib.mlir.dialects import hlo as stablehlo

    MODULE = "ai_edge_torch"
    NAME = _distribution("ai-edge-torch")
    CONVERTER = None
    _serialize_portable_artifact = _export.serialize_portable_artifact

    def _export_signature(signature: Signature) -> torch.export.ExportedProgram:
        program = torch.export.export(
            signature.module,
            signature.args,
            signature.kwargs,
            dynamic_shapes=signature.dynamic_shapes,
            strict=False,
        )
        program = _fx_infra.graph_utils.reset_from_node_meta(program)
        return _fx_infra.safe_run_decompositions(
            program, _fx_infra.decomp.pre_convert_decomp()
        )

    def _lower_exported(program: torch.export.ExportedProgram):
        return _export.exported_program_to_mlir(program)

else:
    raise ImportError(
        "ai_edge_rms_norm needs litert-torch or ai-edge-torch 0.7.1 to convert models;"
        " neither is installed"
    )


def export(
    signature: Signature,
    transform: Callable[[torch.export.ExportedProgram], object] | None = None,
) -> torch.export.ExportedProgram:
    """Exports a signature and runs a pass and the front end's own on the graph."""
    program = _export_signature(signature)
    if transform is not None:
        transform(program)
    return _conversion._run_convert_passes(program)


def lower_to_stablehlo(program: torch.export.ExportedProgram) -> Any:
    """Lowers an exported program to a StableHLO module.

    Returns:
      The front end's `MlirLowered`: ctx, module, state_dict (parameters by name),
      input_signature and output_signature. The function `main` of the module takes
      the parameters and the inputs of the program in the order of input_signature.
    """
    return _lower_exported(program)


def serialize_vhlo(lowered: Any) -> bytes:
    """Returns the module of a `MlirLowered` as a portable artifact (VHLO bytecode)."""
    bytecode = io.BytesIO()
    lowered.module.operation.write_bytecode(bytecode)
    with lowered.ctx:
        return _serialize_portable_artifact(bytecode.getvalue(), _VHLO_VERSION)


def _children(spec: pytree.TreeSpec) -> list[pytree.TreeSpec]:
    # A method since torch 2.10, which deprecates the attribute.
    return spec.children() if hasattr(spec, "children") else spec.children_specs


def _names(spec: pytree.TreeSpec) -> list[str]:
    return [str(name) for name in _flat_dict_names(_children(spec), spec.context)]


def input_names(signature: Signature) -> list[str]:
    """Names the tensors among the inputs: `args_0`, ..., and keyword arguments."""
    _, spec = pytree.tree_flatten((signature.args, signature.kwargs))
    args, kwargs = _children(spec)
    return [f"args_{name}" for name in _names(args)] + _names(kwargs)


def output_names(program: torch.export.ExportedProgram, count: int) -> list[str]:
    """Names the outputs: the keys of a dict, else `output_0`, ..."""
    spec = program.call_spec.out_spec
    if spec is None or not spec.context:
        return [f"output_{i}" for i in range(count)]
    return _names(spec)
