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
import importlib.util
import sys
import types
import warnings
from typing import TYPE_CHECKING, Any

from ai_edge_rms_norm import post_import

__version__ = "0.2.0"

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


def _read_public_names() -> dict[str, str]:
    """Returns from which module each public name is imported, and imports none."""
    modules: dict[str, str] = {}

    def record(
        module: str, _globals: object, _locals: object, names: tuple[str, ...], _: int
    ) -> types.SimpleNamespace:
        modules.update(dict.fromkeys(names, module))
        return types.SimpleNamespace(**dict.fromkeys(names))

    spec = importlib.util.find_spec(f"{__name__}.public_names")
    assert spec is not None and spec.loader is not None
    public_names = importlib.util.module_from_spec(spec)
    # An import statement calls the __import__ of the builtins that its module has.
    vars(public_names)["__builtins__"] = {"__import__": record}
    spec.loader.exec_module(public_names)
    return modules


_HOMES = _read_public_names()


def _import_public_name(name: str) -> Any:
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
    home = _HOMES[name]
    try:
        defined = vars(importlib.import_module(home))
        # Else it is a module.
        value = (
            defined[name]
            if name in defined
            else importlib.import_module(f"{home}.{name}")
        )
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs the package {error.name!r}, which"
            f" {_remedy(home)}",
            name=error.name,
        ) from error
    # The next time it is found without a call of this function.
    globals()[name] = value
    return value


def _remedy(home: str) -> str:
    """Says what installs all that a module of the package imports."""
    layer = home.removeprefix(f"{__name__}.").partition(".")[0]
    if layer == "ops":
        return "pip install 'ai-edge-rms-norm[torch]' installs"
    if layer == "conversion":
        return (
            "pip install 'ai-edge-rms-norm[convert]' installs; on ARM64 see Install in"
            " the README"
        )
    return "pip install ai-edge-rms-norm installs"


def __dir__() -> list[str]:
    return [*_HOMES, "__version__"]


if TYPE_CHECKING:
    from ai_edge_rms_norm.public_names import *
else:  # To type checkers, __getattr__ would say that every name exists.
    __all__ = sorted(_HOMES)
    __getattr__ = _import_public_name


def _register_lowerings() -> None:
    # Its importer registers them; it imports litert_torch itself.
    if f"{__name__}.conversion.torch_frontend" not in sys.modules:
        importlib.import_module(f"{__name__}.conversion.lowering")


post_import.when_imported(
    "torch", lambda: importlib.import_module(f"{__name__}.ops.rms_norm")
)
post_import.when_imported("litert_torch", _register_lowerings)
