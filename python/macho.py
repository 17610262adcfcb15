"""The wheel tag of a macOS shared library, read from its Mach-O file with lief."""

import pathlib

import lief

# The errors here say what is wrong with a file; lief warns of sound ones, too.
lief.logging.disable()

# Every macOS has them.
_LIBRARIES = frozenset({"/usr/lib/libSystem.B.dylib", "/usr/lib/libc++.1.dylib"})


def read(library: pathlib.Path) -> lief.MachO.Binary:
    """Returns the binary for ARM64 of a Mach-O file.

    Raises:
      ValueError: It is not a Mach-O file, or not one for ARM64 alone.
    """
    binaries = lief.MachO.parse(str(library))
    if binaries is None or binaries.size != 1:
        raise ValueError(f"{library} is not a Mach-O file for one architecture")
    machine = binaries.at(0).header.cpu_type
    # The list frees what is not taken out of it.
    binary = binaries.take(lief.MachO.Header.CPU_TYPE.ARM64)
    if binary is None:
        raise ValueError(f"{library} is for {machine}, not for ARM64")
    return binary


def needed(binary: lief.MachO.Binary) -> set[str]:
    """Returns the install names of the libraries that `binary` is linked with."""
    return {
        library.name
        for library in binary.libraries
        if library.command != lief.MachO.LoadCommand.TYPE.ID_DYLIB
    }


def platform_tag(library: pathlib.Path) -> str:
    """Returns macosx_MAJOR_MINOR_arm64, from the oldest macOS that the file names.

    Raises:
      ValueError: It is not for ARM64, names no oldest macOS, or needs a library that
        macOS does not have.
    """
    binary = read(library)
    version = binary.build_version
    if version is None or version.platform != lief.MachO.BuildVersion.PLATFORMS.MACOS:
        raise ValueError(f"{library} does not name the oldest macOS that it runs on")
    strays = sorted(needed(binary) - _LIBRARIES)
    if strays:
        raise ValueError(f"{library} needs other libraries: {', '.join(strays)}")
    major, minor, _ = version.minos
    return f"macosx_{major}_{minor}_arm64"
