"""Verifies the structure of a .tflite before it is unpacked.

Python's flatbuffers trust every offset: one that points elsewhere gives other values,
and tables that are shared are unpacked as often as they are referred to. This is what
`flatbuffers::Verifier` does in C++, for the tables that the installed schema has: every
table, vector and string lies inside the file, nothing is stored that the schema does
not know (unpacking would drop it), and what unpacking will make is bounded by the size
of the file.
"""

import dataclasses
import functools
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm.tflite import edit

__all__ = [
    "Content",
    "VerificationError",
    "table_fields",
    "verify",
    "verify_operator_codes",
]

# Bytes, or what behaves like them: a mapped file.
Content = Any

# How many times as much as the file is large its tables, vectors and strings may be,
# each counted as often as it is referred to. Writers share few of them, if any.
_MAX_SHARING = 4
# Enumerations of the unions whose fields have other names than these.
_UNIONS = {
    "Details": "QuantizationDetails",
    "ArraySegments": "SparseIndexVector",
    "ArrayIndices": "SparseIndexVector",
}
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")


class VerificationError(ValueError):
    """Names the part of the file that is damaged, and how."""


@dataclasses.dataclass(frozen=True)
class _Field:
    """A field of a table in the schema.

    Attributes:
      name: As in the object API.
      slot: Its position in the vtable, counted from 0.
      size: Bytes in the table.
      kind: `scalar`, `string`, `table`, `union`, `scalars` or `tables` (vectors).
      element: Bytes of an element of a vector of scalars.
      table: Name of the table that it holds.
    """

    name: str
    slot: int
    size: int
    kind: str
    element: int = 1
    table: str = ""


class _Recorder:
    """Stands for a Builder and notes what the functions of the schema do with it."""

    def __init__(self) -> None:
        self.fields = self.element = 0
        self.added: tuple[str, int] = ("", 0)

    def StartObject(self, fields: int) -> None:
        self.fields = fields

    def StartVector(self, element: int, *_: int) -> None:
        self.element = element

    def __getattr__(self, name: str) -> Any:
        # PrependInt8Slot, PrependUOffsetTRelativeSlot, ...
        return lambda slot, *_: setattr(self, "added", (name, slot))


_SIZES = {"Bool": 1, "Int8": 1, "Uint8": 1, "Int16": 2, "Uint16": 2}
_SIZES |= {"Int32": 4, "Uint32": 4, "Float32": 4, "UOffsetTRelative": 4}
_SIZES |= {"Int64": 8, "Uint64": 8, "Float64": 8}


def _probe(table: str, fields: int, name: str) -> Any:
    """Returns what reading a field gives where every field is an empty one."""
    vtable = struct.pack(f"<{2 + fields}H", 4 + 2 * fields, 8, *[4] * fields)
    content = vtable + struct.pack("<iI", len(vtable), 4) + bytes(16)
    reader = getattr(schema, table)()
    reader.Init(content, len(vtable))
    vector = hasattr(reader, f"{name}Length")
    return getattr(reader, name)(*((0,) if vector else ()))


def _field(table: str, fields: int, name: str) -> _Field:
    recorder = _Recorder()
    getattr(schema, f"{table}Add{name}")(recorder, 0)
    method, slot = recorder.added
    size = _SIZES[method.removeprefix("Prepend").removesuffix("Slot")]
    attribute = name[0].lower() + name[1:]
    reader = getattr(schema, table)
    if "UOffset" not in method:
        return _Field(attribute, slot, size, "scalar")
    if hasattr(reader, f"{name}AsNumpy"):
        getattr(schema, f"{table}Start{name}Vector")(recorder, 0)
        return _Field(attribute, slot, size, "scalars", recorder.element)
    held = _probe(table, fields, name)
    if isinstance(held, bytes):
        return _Field(attribute, slot, size, "string")
    if hasattr(reader, f"{name}Type"):
        union = _UNIONS.get(name, name)
        return _Field(attribute, slot, size, "union", table=union)
    kind = "tables" if hasattr(reader, f"{name}Length") else "table"
    return _Field(attribute, slot, size, kind, table=type(held).__name__)


@functools.cache
def _slots(table: str) -> int:
    """Returns the number of fields of a table, with the deprecated ones."""
    recorder = _Recorder()
    getattr(schema, f"{table}Start")(recorder)
    return recorder.fields


@functools.cache
def table_fields(table: str) -> tuple[_Field, ...]:
    """Returns the fields of a table of the schema, by their slots.

    The generated module has no reflection, but its functions that build a table say
    in which slot a field is, and those that read one say what it holds.
    """
    fields = [
        _field(table, _slots(table), name)
        for name in vars(getattr(schema, table))
        if hasattr(schema, f"{table}Add{name}")
    ]
    return tuple(sorted(fields, key=lambda field: field.slot))


@functools.cache
def _members(union: str) -> dict[int, str]:
    """Returns the names of the tables that a union may hold, by type."""
    members = vars(getattr(schema, union)).items()
    return {value: name for name, value in members if isinstance(value, int)}


class _Verifier:
    def __init__(self, content: Content) -> None:
        self._content = content
        self._size = len(content)
        self._left = _MAX_SHARING * self._size
        # Fields that are present, and their places, by vtable and table.
        self._layouts: dict[tuple[int, str], tuple[int, dict[str, int]]] = {}

    def root(self) -> int:
        """Returns the position of the table Model."""
        return self._follow(0, "the offset of the model")

    def _inside(self, start: int, size: int, where: str) -> None:
        if start < 0 or start + size > self._size:
            raise VerificationError(
                f"{where}: {size} bytes at byte {start}, the file has {self._size}"
            )

    def _charge(self, size: int, where: str) -> None:
        self._left -= size
        if self._left < 0:
            raise VerificationError(
                f"{where}: tables, vectors and strings up to here add up to more than"
                f" {_MAX_SHARING} times the {self._size} bytes of the file; many are"
                " the same ones"
            )

    def _follow(self, position: int, where: str) -> int:
        self._inside(position, 4, where)
        target: int = position + _U32.unpack_from(self._content, position)[0]
        self._inside(target, 4, where)
        return target

    def _layout(self, position: int, table: str, where: str) -> dict[str, int]:
        """Returns where the fields of a table are, from its start on."""
        self._inside(position, 4, where)
        vtable = position - _I32.unpack_from(self._content, position)[0]
        if (vtable, table) not in self._layouts:
            self._layouts[vtable, table] = self._read_vtable(vtable, table, where)
        size, offsets = self._layouts[vtable, table]
        self._inside(position, size, where)
        self._charge(4 + size, where)
        return offsets

    def _read_vtable(
        self, vtable: int, table: str, where: str
    ) -> tuple[int, dict[str, int]]:
        where = f"{where}, its vtable"
        self._inside(vtable, 4, where)
        length, size = struct.unpack_from("<HH", self._content, vtable)
        if length < 4 or length % 2 or size < 4:
            raise VerificationError(
                f"{where}: {length} bytes that describe a table of {size}"
            )
        self._inside(vtable, length, where)
        slots = struct.unpack_from(f"<{length // 2 - 2}H", self._content, vtable + 4)
        known = {field.slot: field for field in table_fields(table)}
        count = _slots(table)
        offsets = {}
        for slot, offset in enumerate(slots):
            if not offset:
                continue
            if slot >= count:
                raise VerificationError(
                    f"{where}: field {slot} of the table {table} is not in the"
                    " installed schema and would be lost; a newer ai-edge-litert may"
                    " know it"
                )
            if slot not in known:
                continue  # Deprecated: there is nothing that reads it.
            if offset < 4 or offset + known[slot].size > size:
                raise VerificationError(
                    f"{where}: {known[slot].name} at byte {offset} of {size}"
                )
            offsets[known[slot].name] = offset
        return size, offsets

    def table(self, position: int, table: str, where: str) -> None:
        """Verifies a table and what it holds."""
        offsets = self._layout(position, table, where)
        for field in table_fields(table):
            if field.kind == "scalar" or field.name not in offsets:
                continue
            inside = f"{where}.{field.name}" if where else field.name
            target = self._follow(position + offsets[field.name], inside)
            if field.kind == "table":
                self.table(target, field.table, inside)
            elif field.kind == "tables":
                self.tables(target, field.table, inside)
            elif field.kind == "union":
                union = self._union(position, offsets, field, inside)
                self.table(target, union, inside)
            else:
                self._vector(target, field, table, inside)

    def _union(
        self, position: int, offsets: dict[str, int], field: _Field, where: str
    ) -> str:
        offset = offsets.get(f"{field.name}Type")
        kind = self._content[position + offset] if offset else 0
        member = _members(field.table).get(kind) if kind else None
        if member is None:
            raise VerificationError(
                f"{where}: type {kind} of the union {field.table} is not in the"
                " installed schema and would be lost"
            )
        return member

    def _vector(self, target: int, field: _Field, table: str, where: str) -> None:
        """Verifies a string or a vector of scalars."""
        length = _U32.unpack_from(self._content, target)[0]
        size = length * field.element + (field.kind == "string")  # Its terminator.
        self._inside(target + 4, size, where)
        # Data from that size on stay where they are; whoever writes them shares them.
        is_data = table == "Buffer" and size >= edit.APPENDED_SIZE
        self._charge(4 + (0 if is_data else size), where)

    def tables(self, target: int, table: str, where: str) -> None:
        """Verifies a vector of tables."""
        for i, position in enumerate(self.elements(target, where)):
            self.table(position, table, f"{where}[{i}]")

    def elements(self, target: int, where: str) -> Iterator[int]:
        """Yields the positions of the tables in a vector."""
        length = _U32.unpack_from(self._content, target)[0]
        self._inside(target + 4, 4 * length, where)
        offsets = np.frombuffer(self._content, "<u4", length, target + 4)
        for i, offset in enumerate(offsets.tolist()):
            yield target + 4 + 4 * i + offset

    def operator_codes(self) -> None:
        position = self.root()
        offsets = self._layout(position, "Model", "the model")
        if "operatorCodes" in offsets:
            target = self._follow(position + offsets["operatorCodes"], "operatorCodes")
            self.tables(target, "OperatorCode", "operatorCodes")


def verify(content: Content) -> None:
    """Verifies everything that unpacking reads.

    Raises:
      VerificationError: A part lies outside of the file or is not in the schema, or
        shared parts would be unpacked more often than the file is large.
    """
    verifier = _Verifier(content)
    verifier.table(verifier.root(), "Model", "")


def verify_operator_codes(content: Content) -> None:
    """Verifies the operator codes alone, which are a few bytes of a large file.

    Raises:
      VerificationError: As `verify`.
    """
    _Verifier(content).operator_codes()
