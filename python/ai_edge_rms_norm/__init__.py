"""Fused RMSNorm from PyTorch to TFLite / LiteRT.

One operator in the PyTorch graph, one in the .tflite, one kernel at run time:

    import ai_edge_rms_norm as arn

    class Block(torch.nn.Module): ...    # uses arn.RMSNorm or arn.rms_norm
    model = arn.convert(Block().eval(), (x,))
    model.export("block.tflite")
    interpreter = arn.Interpreter(model_path="block.tflite")

The names below are imported on first use, so that running a model needs no PyTorch.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_MODULES = {
    "Converter": "converter",
    "Encoding": "encoding",
    "FuseReport": "fusion",
    "Fused": "fusion",
    "Interpreter": "interpreter",
    "Model": "model",
    "NotReplaced": "replacement",
    "RMSNorm": "nn",
    "Refused": "fusion",
    "ReplaceReport": "replacement",
    "Replaced": "replacement",
    "RmsNormNode": "encoding",
    "add_rms_norm": "op",
    "convert": "converter",
    "delegate_path": "interpreter",
    "find_nodes": "encoding",
    "fuse": "fusion",
    "kernel_variant": "interpreter",
    "replace_rms_norm": "replacement",
    "rms_norm": "op",
    "signature": "converter",
    "translate": "encoding",
}

__all__ = [
    "Converter",
    "Encoding",
    "FuseReport",
    "Fused",
    "Interpreter",
    "Model",
    "NotReplaced",
    "RMSNorm",
    "Refused",
    "ReplaceReport",
    "Replaced",
    "RmsNormNode",
    "add_rms_norm",
    "convert",
    "delegate_path",
    "find_nodes",
    "fuse",
    "kernel_variant",
    "replace_rms_norm",
    "rms_norm",
    "signature",
    "translate",
]

if TYPE_CHECKING:
    from ai_edge_rms_norm.converter import Converter, convert, signature
    from ai_edge_rms_norm.encoding import Encoding, RmsNormNode, find_nodes, translate
    from ai_edge_rms_norm.fusion import Fused, FuseReport, Refused, fuse
    from ai_edge_rms_norm.interpreter import Interpreter, delegate_path, kernel_variant
    from ai_edge_rms_norm.model import Model
    from ai_edge_rms_norm.nn import RMSNorm
    from ai_edge_rms_norm.op import add_rms_norm, rms_norm
    from ai_edge_rms_norm.replacement import (
        NotReplaced,
        Replaced,
        ReplaceReport,
        replace_rms_norm,
    )


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs the package {error.name!r}, which the extra"
            " [convert] of the wheel installs; on ARM64 see Install in the README",
            name=error.name,
        ) from error
    return getattr(module, name)


def __dir__():
    return [*__all__, *globals()]
