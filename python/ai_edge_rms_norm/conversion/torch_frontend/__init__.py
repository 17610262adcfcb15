"""The PyTorch front end: torch.export and the lowering to StableHLO.

litert-torch and ai-edge-torch are two generations of one front end. Their converters
are public, but what the TensorFlow backend and the lowerings need of them is not. So
each has one module here, which alone uses its private interfaces, and the versions are
pinned. Everything else sees `FrontEnd`.

Attributes:
  FRONT_END: The front end that is installed; litert-torch if both are.
"""

import importlib.util

from ai_edge_rms_norm.conversion.torch_frontend.interface import (
    FrontEnd,
    Lowered,
    Signature,
    Transform,
)

__all__ = ["FRONT_END", "FrontEnd", "Lowered", "Signature", "Transform"]


def _installed() -> FrontEnd:
    if importlib.util.find_spec("litert_torch"):
        from ai_edge_rms_norm.conversion.torch_frontend import litert_torch

        return litert_torch.LitertTorch()
    # ai-edge-torch 0.7.2 has the old name, but installs litert-torch.
    if importlib.util.find_spec("ai_edge_torch"):
        from ai_edge_rms_norm.conversion.torch_frontend import ai_edge_torch

        return ai_edge_torch.AiEdgeTorch()
    raise ImportError(
        "ai_edge_rms_norm needs litert-torch or ai-edge-torch 0.7.1 to convert models;"
        " neither is installed"
    )


FRONT_END = _installed()
