"""Files that hold .tflite models: .litertlm and .task, read and written.

    bundle = read_bundle("model.litertlm")
    changed = {model.name: optimize(model.content) for model in bundle.models}
    bundle.write("changed.litertlm", changed)

A .tflite is a bundle of one model. A .litertlm (LiteRT-LM) has sections in blocks of 16
KiB behind a header, which is read with the package litert-lm-builder. A .task
(MediaPipe) is a ZIP archive whose entries are stored, so that they can be mapped; its
entries may be .task files again. The content of a file says what it is, not its name.
"""

import abc
import copy
import dataclasses
import importlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from ai_edge_rms_norm.tflite import files

__all__ = ["Bundle", "BundledModel", "read_bundle"]

_Chunks = list[bytes | bytearray | memoryview]
# Places in the vtable of SectionObject (litertlm_header_schema.fbs).
_OFFSET_SLOTS = (6, 8)
_TFLITE = b"TFL3"  # The file identifier, behind the offset of the root table.
_LITERTLM = b"LITERTLM"
_ZIP = b"PK\x03\x04"
# Padding of a ZIP entry: the identifier that Android's zipalign uses.
_PADDING = 0xD935
_ZIP64 = 0x0001
_LARGEST_ALIGNMENT = 1 << 14
_ENCRYPTED = 0x1
# Real archives are two deep; it bounds what archives made to exhaust memory do.
_MAX_DEPTH = 4


@dataclasses.dataclass(frozen=True)
class BundledModel:
    """A .tflite in a bundle.

    Attributes:
      name: The name of its section or entry, which no other model of the bundle has;
        of an entry inside of another, both with a slash. Empty for a .tflite itself.
      content: The bytes of the .tflite. They stay those of the file as it was read.
    """

    name: str
    content: memoryview


class Bundle(abc.ABC):
    """A file with models.

    Attributes:
      kind: "tflite", "litertlm" or "task".
      models: The models in it, in the order of the file.
    """

    kind: str
    models: tuple[BundledModel, ...]

    @abc.abstractmethod
    def chunks(self, contents: Mapping[str, bytes]) -> _Chunks:
        """Returns the file in pieces, with other contents for models by name.

        Raises:
          ValueError: A name is not that of a model.
        """

    def write(
        self, path: str | bytes | os.PathLike[str], contents: Mapping[str, bytes]
    ) -> None:
        """Writes the file with other contents for some models, or not at all.

        Everything else is as it was, with the alignment that it had.

        Args:
          path: Where to; it may be the file that was read.
          contents: The .tflite files by the name of the model that they replace.

        Raises:
          OSError: The file cannot be written.
          ValueError: A name is not that of a model.
        """
        files.write_file(path, self.chunks(contents))

    def _check_names(self, contents: Mapping[str, bytes]) -> None:
        names = {model.name for model in self.models}
        for name in contents:
            if name not in names:
                raise ValueError(f"{name!r} is not a model of the bundle: {names}")


class _TfliteFile(Bundle):
    kind = "tflite"

    def __init__(self, content: memoryview) -> None:
        self.models = (BundledModel("", content),)

    def chunks(self, contents: Mapping[str, bytes]) -> _Chunks:
        self._check_names(contents)
        return [contents.get("", self.models[0].content)]


def _litert_lm_builder() -> tuple[ModuleType, ModuleType, ModuleType]:
    """Imports what reads the header of a .litertlm."""
    names = ("litertlm_core", "litertlm_header_schema_py_generated", "litertlm_peek")
    try:
        core, schema, peek = (
            importlib.import_module(f"litert_lm_builder.{name}") for name in names
        )
    except ImportError as error:
        raise ImportError(
            "a .litertlm is read with the package litert-lm-builder: pip install"
            ' "ai-edge-rms-norm[litertlm]"'
        ) from error
    return core, schema, peek


def _positions(section: Any) -> tuple[int, int]:
    """Returns where the header has the offsets of the begin and the end of a section.

    The object API of litert-lm-builder 0.18 cannot read metadata (its generated code
    calls a function by another name than it has), and its builder drops what it does
    not know, so that the numbers are replaced in the header as it is.
    """
    table = section._tab  # noqa: SLF001
    fields = [table.Offset(slot) for slot in _OFFSET_SLOTS]
    if 0 in fields:
        raise ValueError("a section of the .litertlm has no offsets")
    begin, end = (table.Pos + field for field in fields)
    return begin, end


class _LitertLmFile(Bundle):
    kind = "litertlm"

    def __init__(self, content: memoryview) -> None:
        self._core, self._schema, peek = _litert_lm_builder()
        self._prefix = bytes(content[: self._core.HEADER_BEGIN_BYTE_OFFSET])
        self._check_version()
        self._header = self._read_header(content)
        table = self._schema.LiteRTLMMetaData.GetRootAs(self._header, 0)
        sections = table.SectionMetadata()
        count = sections.ObjectsLength() if sections is not None else 0
        self._sections: list[memoryview] = []
        self._offsets: list[tuple[int, int]] = []
        self._indices: dict[str, int] = {}
        models, end = [], 0
        for i in range(count):
            section = sections.Objects(i)
            begin, previous, end = section.BeginOffset(), end, section.EndOffset()
            if not previous <= begin <= end <= len(content):
                raise ValueError(
                    f"section {i} of the .litertlm is at {begin} to {end}; expected"
                    f" it to lie between {previous} and {len(content)}"
                )
            self._sections.append(content[begin:end])
            self._offsets.append(_positions(section))
            if section.DataType() == self._schema.AnySectionDataType.TFLiteModel:
                kind = peek.get_model_type(section)
                name = f"Section{i}_TFLiteModel" + (f"_{kind}" if kind else "")
                self._indices[name] = i
                models.append(BundledModel(name, content[begin:end]))
        self.models = tuple(models)

    def _check_version(self) -> None:
        """Raises for a file of a layout that is not known."""
        (major,) = struct.unpack_from("<I", self._prefix, len(_LITERTLM))
        known = self._core.LITERTLM_MAJOR_VERSION
        if major != known:
            raise ValueError(
                f"the .litertlm has major version {major}, the installed"
                f" litert-lm-builder knows {known}"
            )

    def _read_header(self, content: memoryview) -> bytes:
        at = self._core.HEADER_END_LOCATION_BYTE_OFFSET
        begin = self._core.HEADER_BEGIN_BYTE_OFFSET
        (end,) = struct.unpack_from("<Q", self._prefix, at)
        if not begin + 4 <= end <= len(content):
            raise ValueError(
                f"the header of the .litertlm ends at {end}; the file has"
                f" {len(content)} bytes"
            )
        return bytes(content[begin:end])

    def chunks(self, contents: Mapping[str, bytes]) -> _Chunks:
        self._check_names(contents)
        sections: list[bytes | memoryview] = list(self._sections)
        for name, content in contents.items():
            sections[self._indices[name]] = content
        position = len(self._prefix) + len(self._header)
        chunks: _Chunks = []
        header = bytearray(self._header)
        for offsets, section in zip(self._offsets, sections, strict=True):
            padding = -position % self._core.BLOCK_SIZE
            begin = position + padding
            position = begin + len(section)
            for offset, value in zip(offsets, (begin, position), strict=True):
                struct.pack_into("<Q", header, offset, value)
            chunks += [bytes(padding), section]
        return [self._prefix, header, *chunks]


def _without(extra: bytes, identifiers: Sequence[int]) -> bytes:
    """Returns the extra field of a ZIP entry without some records."""
    kept, position = b"", 0
    while position + 4 <= len(extra):
        identifier, size = struct.unpack_from("<HH", extra, position)
        end = position + 4 + size
        if identifier not in identifiers:
            kept += extra[position:end]
        position = end
    return kept


class _ChunkFile(io.RawIOBase):
    """A file to write to that keeps the pieces, without copying large ones."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks: dict[int, bytes | memoryview] = {}
        self._position = self._end = 0

    def chunks(self) -> _Chunks:
        return [self._chunks[position] for position in sorted(self._chunks)]

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (self._end if whence == os.SEEK_END else 0)
        return self._position

    def write(self, data: Any) -> int:
        size = len(data)
        if size:
            # zipfile writes the header of an entry again, with the checksum.
            old = self._chunks.get(self._position)
            if self._position != self._end and (old is None or len(old) != size):
                raise io.UnsupportedOperation("only whole pieces can be written again")
            self._chunks[self._position] = data
            self._position += size
            self._end = max(self._end, self._position)
        return size


class _Reader(io.RawIOBase):
    """A file to read from that is in memory, without a copy of it."""

    def __init__(self, content: memoryview) -> None:
        super().__init__()
        self._content = content
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = (0, self._position, len(self._content))[whence]
        if start + offset < 0:
            raise OSError("the position is negative")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._content[self._position : self._position + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """An entry of an archive.

    Attributes:
      info: Its name and attributes.
      content: Its bytes, decompressed.
      alignment: Of the bytes in the file, a power of two.
      bundle: Its content; None for anything but models.
    """

    info: zipfile.ZipInfo
    content: memoryview
    alignment: int
    bundle: Bundle | None

    def names(self) -> dict[str, str]:
        """Returns the names of its models in the bundle that it is in, and inside."""
        if self.bundle is None:
            return {}
        outer, inner = self.info.filename, [m.name for m in self.bundle.models]
        return {f"{outer}/{name}" if name else outer: name for name in inner}

    def changed(self, contents: Mapping[str, bytes]) -> bytes | memoryview:
        """Returns its bytes with other contents for models by their outer names."""
        names = self.names()
        inner = {names[name]: c for name, c in contents.items() if name in names}
        if not inner or self.bundle is None:
            return self.content
        return b"".join(self.bundle.chunks(inner))

    def aligned(self, size: int, offset: int) -> zipfile.ZipInfo:
        """Returns what makes the bytes, written at `offset`, as aligned as they were.

        Args:
          size: The number of bytes, which may be others.
          offset: Where the header of the entry goes.
        """
        info = copy.copy(self.info)
        info.extra = _without(info.extra, (_PADDING, _ZIP64))
        info.file_size = info.compress_size = size
        # As ZipFile.writestr decides.
        header = info.FileHeader(zip64=size * 1.05 > zipfile.ZIP64_LIMIT)
        padding = -(offset + len(header)) % self.alignment
        if padding:
            # A record has at least its identifier and its size.
            while padding < 4:
                padding += self.alignment
            info.extra += struct.pack("<HH", _PADDING, padding - 4) + bytes(padding - 4)
        return info


class _TaskFile(Bundle):
    kind = "task"

    def __init__(self, content: memoryview, depth: int) -> None:
        with zipfile.ZipFile(_Reader(content)) as archive:
            self._comment = archive.comment
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
            self._entries = [
                _read_entry(archive, info, content, depth) for info in infos
            ]
        models: dict[str, BundledModel] = {}
        for entry in self._entries:
            inner = entry.bundle.models if entry.bundle else ()
            for name, model in zip(entry.names(), inner, strict=True):
                if name in models:
                    raise ValueError(f"the archive has two models {name!r}")
                models[name] = BundledModel(name, model.content)
        self.models = tuple(models.values())

    def chunks(self, contents: Mapping[str, bytes]) -> _Chunks:
        self._check_names(contents)
        file = _ChunkFile()
        with zipfile.ZipFile(file, "w") as archive:
            archive.comment = self._comment
            for entry in self._entries:
                data = entry.changed(contents)
                archive.writestr(entry.aligned(len(data), file.tell()), data)
        return file.chunks()


def _read_entry(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, content: memoryview, depth: int
) -> _Entry:
    if info.flag_bits & _ENCRYPTED:
        raise ValueError(f"the entry {info.filename!r} is encrypted")
    data, alignment = None, 1
    if info.compress_type == zipfile.ZIP_STORED:
        # Behind the header, a name and an extra field (APPNOTE.TXT, 4.3.7).
        begin = info.header_offset + 30
        begin += sum(struct.unpack_from("<HH", content, info.header_offset + 26))
        data = content[begin : begin + info.file_size]
        alignment = min(begin & -begin, _LARGEST_ALIGNMENT)
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise ValueError(f"the entry {info.filename!r} is damaged")
    else:
        data = memoryview(archive.read(info))
    is_bundle = _kind(data) is not None and depth < _MAX_DEPTH
    return _Entry(
        info, data, alignment, _bundle(data, depth + 1) if is_bundle else None
    )


def _kind(content: memoryview) -> str | None:
    if content[4:8] == _TFLITE:
        return "tflite"
    if content[: len(_LITERTLM)] == _LITERTLM:
        return "litertlm"
    return "task" if content[: len(_ZIP)] == _ZIP else None


def _bundle(content: memoryview, depth: int) -> Bundle:
    kind = _kind(content)
    if kind == "litertlm":
        return _LitertLmFile(content)
    if kind == "task":
        return _TaskFile(content, depth)
    if kind == "tflite":
        return _TfliteFile(content)
    raise ValueError(
        "expected a .tflite, a .litertlm or a .task; the file begins with"
        f" {bytes(content[:8])!r}"
    )


def read_bundle(path: str | bytes | os.PathLike[str]) -> Bundle:
    """Reads a .tflite, .litertlm or .task.

    Args:
      path: Of the file. A large one is mapped, so it must not shrink meanwhile.

    Raises:
      ImportError: It is a .litertlm, and litert-lm-builder is not installed.
      OSError: It cannot be read.
      ValueError: It is something else, or damaged.
    """
    content = memoryview(files.read_file(path))
    try:
        return _bundle(content, 0)
    except ImportError:
        raise
    except Exception as error:  # The parsers raise many types for damaged files.
        is_reason = type(error) is ValueError
        what = f": {error}" if is_reason else f" is damaged: {error!r}"
        raise ValueError(f"{os.fsdecode(path)}{what}") from error
