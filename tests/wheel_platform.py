"""Checks what a wheel's platform tag promises, and protections, from its libraries.

The tag comes from auditwheel when the wheel is built; this looks with pyelftools only.
"""

import io
import pathlib
import platform
import re
import zipfile
from collections.abc import Iterator

from elftools.elf import dynamic, elffile, gnuversions

from tests import hardening

_MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
# The glibc and GCC run-time libraries that every manylinux platform has (PEP 600).
_LIBRARIES = re.compile(
    r"lib(c|m|dl|pthread|gcc_s|stdc\+\+)\.so\.\d|ld-linux-.*\.so\.\d"
)

# The oldest glibc 2.N that a wheel built on Debian 12 runs on, as docs/arm64.md says;
# a newer compiler may need newer libraries.
_DEBIAN_12_GLIBC = {"x86_64": 27, "aarch64": 26}


def _built_on_debian_12() -> bool:
    release = platform.freedesktop_os_release()
    return (release["ID"], release.get("VERSION_ID")) == ("debian", "12")


def _strays(elf: elffile.ELFFile, glibc: int) -> Iterator[str]:
    """Yields the libraries and versions that a tag for glibc 2.N does not promise."""
    for section in elf.iter_sections():
        if isinstance(section, dynamic.DynamicSection):
            for entry in section.iter_tags("DT_NEEDED"):
                if not _LIBRARIES.fullmatch(entry.needed):
                    yield entry.needed
        if isinstance(section, gnuversions.GNUVerNeedSection):
            for _, versions in section.iter_versions():
                for version in versions:
                    old = re.fullmatch(r"GLIBC_2\.(\d+)(\.\d+)?", version.name)
                    if old and int(old[1]) > glibc:
                        yield version.name


def problems(wheel: pathlib.Path, machine: str) -> list[str]:
    """Returns what in `wheel` contradicts its tag; empty if nothing does.

    Args:
      wheel: Path of the .whl.
      machine: The architecture it should be for, "x86_64" or "aarch64".
    """
    tag = re.search(r"-py3-none-manylinux_2_(\d+)_(\w+)\.whl$", wheel.name)
    if not tag:
        return [f"{wheel.name} has no tag py3-none-manylinux_2_N_MACHINE"]
    glibc = int(tag[1])
    found = []
    if _built_on_debian_12() and glibc > _DEBIAN_12_GLIBC[machine]:
        found.append(
            f"{wheel.name} needs glibc newer than 2.{_DEBIAN_12_GLIBC[machine]}"
        )
    if tag[2] != machine:
        found.append(f"{wheel.name} is not for {machine}")
    with zipfile.ZipFile(wheel) as archive:
        libraries = {n: archive.read(n) for n in archive.namelist() if ".so" in n}
    if not libraries:
        found.append(f"{wheel.name} has no shared library")
    for name, content in libraries.items():
        elf = elffile.ELFFile(io.BytesIO(content))
        if elf["e_machine"] != _MACHINES[machine]:
            found.append(f"{name} is for {elf['e_machine']}")
        found += [f"{name} needs {needed}" for needed in _strays(elf, glibc)]
        found += [f"{name} has {problem}" for problem in hardening.problems(content)]
    return found
