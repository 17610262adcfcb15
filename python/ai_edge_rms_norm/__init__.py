"""Fused RMSNorm from PyTorch to TFLite / LiteRT.

One operator in the PyTorch graph, one in the .tflite, one kernel at run time:

    import ai_edge_rms_norm as arn

    class Block(torch.nn.Module): ...    # uses arn.RMSNorm or arn.rms_norm
    model = arn.convert(Block().eval(), (x,))
    model.export("block.tflite")
    interpreter = arn.Interpreter(model_path="block.tflite")

The names in `__all__` are imported on first use, so that running a model needs no
PyTorch. Where torch is imported, before or after this package, the operators
`torch.ops.ai_edge_torch.custom_rms_norm` and `custom_add_rms_norm` exist; where
litert_torch is, `litert_torch.convert` lowers them.
"""

import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

from ai_edge_rms_norm import post_import

__version__ = "0.2.0"

if TYPE_CHECKING:
    from ai_edge_rms_norm import backends as backends
    from ai_edge_rms_norm.conversion.converter import Converter as Converter
    from ai_edge_rms_norm.conversion.converter import convert as convert
    from ai_edge_rms_norm.conversion.converter import signature as signature
    from ai_edge_rms_norm.ops.nn import RMSNorm as RMSNorm
    from ai_edge_rms_norm.ops.replace import ReplacedModule as ReplacedModule
    from ai_edge_rms_norm.ops.replace import ReplaceReport as ReplaceReport
    from ai_edge_rms_norm.ops.replace import SkippedModule as SkippedModule
    from ai_edge_rms_norm.ops.replace import replace_rms_norm as replace_rms_norm
    from ai_edge_rms_norm.ops.rms_norm import add_rms_norm as add_rms_norm
    from ai_edge_rms_norm.ops.rms_norm import rms_norm as rms_norm
    from ai_edge_rms_norm.runtime import compiled_model as compiled_model
    from ai_edge_rms_norm.runtime.check import CheckedNorm as CheckedNorm
    from ai_edge_rms_norm.runtime.check import CheckReport as CheckReport
    from ai_edge_rms_norm.runtime.check import check as check
    from ai_edge_rms_norm.runtime.interpreter import Interpreter as Interpreter
    from ai_edge_rms_norm.runtime.interpreter import delegate_path as delegate_path
    from ai_edge_rms_norm.runtime.interpreter import kernel_variant as kernel_variant
    from ai_edge_rms_norm.runtime.interpreter import kernel_variants as kernel_variants
    from ai_edge_rms_norm.runtime.model import Model as Model
    from ai_edge_rms_norm.runtime.model import fuse as fuse
    from ai_edge_rms_norm.tflite.encoding import Encoding as Encoding
    from ai_edge_rms_norm.tflite.encoding import RmsNormOp as RmsNormOp
    from ai_edge_rms_norm.tflite.encoding import find_ops as find_ops
    from ai_edge_rms_norm.tflite.encoding import translate as translate
    from ai_edge_rms_norm.tflite.fuse import FusedNorm as FusedNorm
    from ai_edge_rms_norm.tflite.fuse import FusionReport as FusionReport
    from ai_edge_rms_norm.tflite.fuse import SkippedNorm as SkippedNorm

# Where each public name is defined; type checkers read the imports above.
_MODULES = {
    "conversion.converter": ("Converter", "convert", "signature"),
    "ops.nn": ("RMSNorm",),
    "ops.replace": (
        "ReplaceReport",
        "ReplacedModule",
        "SkippedModule",
        "replace_rms_norm",
    ),
    "ops.rms_norm": ("add_rms_norm", "rms_norm"),
    "runtime.check": ("CheckReport", "CheckedNorm", "check"),
    "runtime.interpreter": (
        "Interpreter",
        "delegate_path",
        "kernel_variant",
        "kernel_variants",
    ),
    "runtime.model": ("Model", "fuse"),
    "tflite.encoding": ("Encoding", "RmsNormOp", "find_ops", "translate"),
    "tflite.fuse": ("FusedNorm", "FusionReport", "SkippedNorm"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
# Modules that are public as a whole.
_SUBMODULES = {"backends": "backends", "compiled_model": "runtime.compiled_model"}
# Names before 0.2.
_DEPRECATED = {
    "FuseReport": "FusionReport",
    "Fused": "FusedNorm",
    "NotReplaced": "SkippedModule",
    "Refused": "SkippedNorm",
    "Replaced": "ReplacedModule",
    "RmsNormNode": "RmsNormOp",
    "find_nodes": "find_ops",
}

__all__ = sorted([*_HOMES, *_SUBMODULES])


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{_SUBMODULES[name]}")
    if name in _DEPRECATED:
        new = _DEPRECATED[name]
        warnings.warn(
            f"{__name__}.{name} is now {__name__}.{new}",
            DeprecationWarning,
            stacklevel=2,
        )
        name = new
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs the package {error.name!r}, which"
            f" {_remedy(_HOMES[name])}",
            name=error.name,
        ) from error
    # The next time it is found without a call of this function.
    globals()[name] = value = getattr(module, name)
    return value


def _remedy(home: str) -> str:
    """Says what installs all that a module of the package imports."""
    layer = home.partition(".")[0]
    if layer == "ops":
        return "pip install 'ai-edge-rms-norm[torch]' installs"
    if layer == "conversion":
        return (
            "pip install 'ai-edge-rms-norm[convert]' installs; on ARM64 see Install in"
            " the README"
        )
    return "pip install ai-edge-rms-norm installs"


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _register_lowerings() -> None:
    # Its importer registers them; it imports litert_torch itself.
    if f"{__name__}.conversion.torch_frontend" not in sys.modules:
        importlib.import_module(f"{__name__}.conversion.lowering")


post_import.when_imported(
    "torch", lambda: importlib.import_module(f"{__name__}.ops.rms_norm")
)
post_import.when_imported("litert_torch", _register_lowerings)
