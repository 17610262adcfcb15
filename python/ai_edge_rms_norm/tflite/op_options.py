"""Names and options of the operators outside PyTorch, in one place.

In StableHLO and in `STABLEHLO_CUSTOM_CALL` the options are a JSON text in
backend_config; in a `CUSTOM` operator they are a FlexBuffers map in custom_options.
Both hold `epsilon` as a float64 and round-trip it exactly.
"""

import json
import math

from flatbuffers import flexbuffers

__all__ = [
    "ADD_RMS_NORM",
    "CALL_TARGETS",
    "RMS_NORM",
    "decode_backend_config",
    "decode_custom_options",
    "encode_backend_config",
    "encode_custom_options",
]

# Operands x[, weight]; result y.
RMS_NORM = "ai_edge_torch.rms_norm"
# Operands x, residual[, weight]; results x + residual and y.
ADD_RMS_NORM = "ai_edge_torch.add_rms_norm"
CALL_TARGETS = (RMS_NORM, ADD_RMS_NORM)


def _check_epsilon(options, source: str) -> float:
    epsilon = options.get("epsilon") if isinstance(options, dict) else None
    # bool is an int in Python, but it is no epsilon.
    is_number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    if not (is_number and math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(
            f"{source} must be a map with a finite epsilon > 0, got {options}"
        )
    return float(epsilon)


def encode_backend_config(epsilon: float) -> str:
    """Returns the JSON text; `repr` of a float round-trips, and json uses it."""
    return json.dumps({"epsilon": float(epsilon)})


def decode_backend_config(backend_config: str) -> float:
    """Returns the epsilon in a backend_config.

    Raises:
      ValueError: The text is no JSON object with a finite epsilon > 0.
    """
    try:
        options = json.loads(backend_config)
    except ValueError as error:
        raise ValueError(f"backend_config is not JSON: {backend_config!r}") from error
    return _check_epsilon(options, "backend_config")


def encode_custom_options(epsilon: float) -> bytes:
    """Returns the FlexBuffers map {"epsilon": epsilon}."""
    builder = flexbuffers.Builder()
    with builder.Map():
        builder.Key("epsilon")
        builder.Float(float(epsilon), byte_width=8)
    return bytes(builder.Finish())


def decode_custom_options(custom_options: bytes) -> float:
    """Returns the epsilon in custom_options.

    Raises:
      ValueError: The bytes are no FlexBuffers map with a finite epsilon > 0.
    """
    try:
        options = flexbuffers.Loads(bytes(custom_options))
    except Exception as error:  # The reader raises whatever the garbage provokes.
        raise ValueError(
            f"custom_options are not FlexBuffers: {bytes(custom_options)!r}"
        ) from error
    return _check_epsilon(options, "custom_options")
