"""Names and options of the operators outside PyTorch, in one place.

In StableHLO and in `STABLEHLO_CUSTOM_CALL` the options are a JSON text in
backend_config; in a `CUSTOM` operator and in a composite they are a FlexBuffers map.
Both hold `epsilon` as a float64 and round-trip it exactly. Any other key is an error:
ignoring it could change the result. The delegate follows the same rule
(kernels/tflite/rms_norm_options.h).
"""

import dataclasses
import json
import math
import struct
from typing import Any, NamedTuple

from flatbuffers import flexbuffers

__all__ = [
    "ADD_RMS_NORM",
    "CALL_TARGETS",
    "Operands",
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


class Operands(NamedTuple):
    """How many operands an operator has before the weight, and how many results."""

    inputs: int
    outputs: int


CALL_TARGETS = {RMS_NORM: Operands(1, 1), ADD_RMS_NORM: Operands(2, 2)}

_KEY = "epsilon"
_EXPECTED = 'a map with the one key "epsilon", a finite number > 0'


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _check_epsilon(epsilon: Any, source: str) -> float:
    # bool is an int in Python, but it is not an epsilon.
    if not isinstance(epsilon, int | float) or isinstance(epsilon, bool):
        raise ValueError(  # noqa: TRY004
            f"{source} must be {_EXPECTED}; epsilon is {_shown(epsilon)}"
        )
    try:
        value = float(epsilon)
    except OverflowError:  # An int may have any number of digits.
        value = math.inf
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{source} must be {_EXPECTED}; epsilon is {value!r}")
    return value


def _check_keys(keys: list[str], source: str) -> None:
    for key in keys:
        if key != _KEY:
            raise ValueError(
                f"{source} must be {_EXPECTED}; it has the unknown key {_shown(key)}"
            )
    if len(keys) != 1:
        how = "it has epsilon more than once" if keys else "epsilon is missing"
        raise ValueError(f"{source} must be {_EXPECTED}; {how}")


def encode_backend_config(epsilon: float) -> str:
    """Returns the JSON text; `repr` of a float round-trips, and json uses it."""
    return json.dumps({_KEY: float(epsilon)})


def decode_backend_config(backend_config: str) -> float:
    """Returns the epsilon in a backend_config.

    Raises:
      ValueError: The text is not a JSON object with nothing but a finite epsilon > 0.
    """
    source = "backend_config"
    try:
        # As pairs: a dict would hide that a key comes twice.
        options = json.loads(backend_config, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not JSON: {_shown(backend_config)}") from error
    if not isinstance(options, _Pairs):
        raise ValueError(  # noqa: TRY004
            f"{source} must be {_EXPECTED}, got {_shown(options)}"
        )
    _check_keys([key for key, _ in options], source)
    return _check_epsilon(options[0][1], source)


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of a JSON object."""


def encode_custom_options(epsilon: float) -> bytes:
    """Returns the FlexBuffers map {"epsilon": epsilon}."""
    builder = flexbuffers.Builder()
    with builder.Map():
        builder.Key(_KEY)
        builder.Float(float(epsilon), byte_width=8)
    return bytes(builder.Finish())


@dataclasses.dataclass(frozen=True)
class _FlexBuffer:
    """Reads a FlexBuffers map without what its values refer to.

    `flexbuffers.Loads` unpacks shared vectors as often as they are referred to, and
    takes negative positions for ones from the end. This reads exactly what the rules
    in kernels/tflite/rms_norm_options.h accept, which say where everything is.
    """

    content: bytes

    def _number(self, position: int, width: int, formats: str = "BHIQ") -> Any:
        index = {1: 0, 2: 1, 4: 2, 8: 3}.get(width)
        if index is None or formats[index] == " ":
            raise ValueError(f"a value of {width} bytes")
        if not 0 <= position <= len(self.content) - width:
            raise ValueError(f"a value at byte {position} of {len(self.content)}")
        return struct.unpack_from(f"<{formats[index]}", self.content, position)[0]

    def _follow(self, position: int, width: int) -> int:
        target: int = position - self._number(position, width)
        if target < 0:
            raise ValueError(f"an offset to byte {target}")
        return target

    def root(self) -> tuple[int, int]:
        """Returns position and width of the values of the root, which is a map."""
        size = len(self.content)
        width = self._number(size - 1, 1)
        kind, value_width = self._type(size - 2)
        if kind != flexbuffers.Type.MAP:
            raise ValueError("a root that is not a map")
        return self._follow(size - 2 - width, width), value_width

    def _type(self, position: int) -> tuple[int, int]:
        packed = self._number(position, 1)
        return packed >> 2, 1 << (packed & 3)

    def keys(self, values: int, width: int) -> list[str]:
        """Returns the keys of a map, two at most."""
        key_width = self._number(values - 2 * width, width)
        keys = self._follow(values - 3 * width, width)
        count = self._number(keys - key_width, key_width)
        if count != self._number(values - width, width):
            raise ValueError("another number of keys than of values")
        found: list[str] = []
        # A second key is an error already.
        for i in range(min(count, 2)):
            start = self._follow(keys + i * key_width, key_width)
            end = self.content.find(b"\0", start)
            if end < 0:
                raise ValueError(f"a key at byte {start} that does not end")
            found.append(self.content[start:end].decode(errors="backslashreplace"))
        return found

    def value(self, values: int, width: int) -> Any:
        """Returns the first value of a map of one: a number, or None for others."""
        kind, own_width = self._type(values + width)
        types = flexbuffers.Type
        formats = {
            types.INT: "bhiq",
            types.UINT: "BHIQ",
            types.FLOAT: "  fd",
            types.INDIRECT_INT: "bhiq",
            types.INDIRECT_UINT: "BHIQ",
            types.INDIRECT_FLOAT: "  fd",
        }.get(kind)
        if formats is None:
            return None
        if kind in (types.INT, types.UINT, types.FLOAT):
            return self._number(values, width, formats)
        return self._number(self._follow(values, width), own_width, formats)


def decode_custom_options(custom_options: bytes) -> float:
    """Returns the epsilon in custom_options.

    Raises:
      ValueError: The bytes are not a FlexBuffers map with nothing but a finite
        epsilon > 0.
    """
    source = "custom_options"
    content = bytes(custom_options)
    reader = _FlexBuffer(content)
    try:
        values, width = reader.root()
        keys = reader.keys(values, width)
    except ValueError as error:
        raise ValueError(
            f"{source} must be {_EXPECTED} in FlexBuffers, got {len(content)} bytes"
            f" with {error}: {_shown(content)}"
        ) from error
    _check_keys(keys, source)
    try:
        epsilon = reader.value(values, width)
    except ValueError as error:
        raise ValueError(f"{source}: epsilon is {error}") from error
    if epsilon is None:
        raise ValueError(f"{source} must be {_EXPECTED}; epsilon is not a number")
    return _check_epsilon(epsilon, source)
