"""Whether a shared library has the protections that kernels/copts.bzl asks for.

It looks into the library itself, since a toolchain may drop a flag silently.
"""

import io
from collections.abc import Iterator

from elftools.elf import constants, elffile, enums

# Instructions that an indirect call may arrive at, by architecture: endbr64 (Intel
# CET), and `bti c` or `paciasp` (Armv8.5-A; the latter is both).
_LANDING_PADS = {
    "EM_X86_64": (b"\xf3\x0f\x1e\xfa",),
    "EM_AARCH64": (b"\x5f\x24\x03\xd5", b"\x3f\x23\x03\xd5"),
}


def _segments(elf: elffile.ELFFile) -> Iterator[str]:
    segments = {segment["p_type"]: segment for segment in elf.iter_segments()}
    if "PT_GNU_RELRO" not in segments:
        yield "no PT_GNU_RELRO"
    stack = segments.get("PT_GNU_STACK")
    # Without the segment, the loader makes the stack executable.
    if stack is None or stack["p_flags"] & constants.P_FLAGS.PF_X:
        yield "an executable stack"
    tags = segments["PT_DYNAMIC"].iter_tags()
    flags = {tag.entry.d_tag: tag.entry.d_val for tag in tags}
    if not (
        flags.get("DT_FLAGS", 0) & enums.ENUM_DT_FLAGS["DF_BIND_NOW"]
        or flags.get("DT_FLAGS_1", 0) & enums.ENUM_DT_FLAGS_1["DF_1_NOW"]
    ):
        yield "no BIND_NOW"


def _read(elf: elffile.ELFFile, address: int, size: int) -> bytes:
    (offset,) = elf.address_offsets(address, size)
    elf.stream.seek(offset)
    content: bytes = elf.stream.read(size)
    return content


def _functions(elf: elffile.ELFFile) -> Iterator[str]:
    pads = _LANDING_PADS[elf["e_machine"]]
    undefined = set()
    for symbol in elf.get_section_by_name(".dynsym").iter_symbols():
        if symbol["st_shndx"] == "SHN_UNDEF":
            undefined.add(symbol.name)
        elif (
            symbol["st_info"]["type"] == "STT_FUNC"
            and _read(elf, symbol["st_value"], 4) not in pads
        ):
            yield f"{symbol.name} without a landing pad"
    if "__stack_chk_fail" not in undefined:
        yield "no stack protector"


def problems(library: bytes) -> list[str]:
    """Returns the protections that an ELF library is without; empty if none is.

    Args:
      library: The content of a .so for x86-64 or AArch64.
    """
    elf = elffile.ELFFile(io.BytesIO(library))
    return [*_segments(elf), *_functions(elf)]
