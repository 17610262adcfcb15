"""Reads and writes files so that nothing is lost, whatever happens in between.

See docs/files.md for what is kept and what is not.
"""

import contextlib
import errno
import mmap
import os
import secrets
import signal
import stat
import tempfile
import threading
import types
import warnings
from collections.abc import Iterator, Sequence

__all__ = ["read_file", "write_file"]

# Files from this size on are mapped: reading a smaller one takes 20 ms at most.
_MAPPED_SIZE = 64 << 20
# A rename or a new file beside the old one is not possible there, but writing may be.
_NOT_REPLACEABLE = (
    errno.EACCES,
    errno.EBUSY,
    errno.EPERM,
    errno.EROFS,
    errno.EXDEV,
)
_Chunk = bytes | bytearray | memoryview


def read_file(path: str | bytes | os.PathLike[str]) -> bytes | mmap.mmap:
    """Reads a file; a large one is mapped read-only instead.

    Shrinking a file while it is mapped ends the process with SIGBUS.

    Raises:
      OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size < _MAPPED_SIZE:
            return file.read()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def write_file(path: str | bytes | os.PathLike[str], chunks: Sequence[_Chunk]) -> None:
    """Writes a file, completely or not at all.

    The bytes go to a file without a name in the same folder (or, where the file system
    has none, to one that starts with `.`), reach the disk, and take the place of the
    old file with its mode and owner. Missing parent folders are made. Of a symbolic
    link, the file that it leads to is replaced. A device or pipe, like /dev/null, is
    written to. A file that can be written but not replaced is written in place.

    Raises:
      OSError: The file cannot be written; an old one is as it was.
    """
    path = os.fsdecode(path)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        status = None
    # Before links are followed: that of /dev/stdout may lead to no name.
    if status is not None and not stat.S_ISREG(status.st_mode):
        with open(path, "wb") as file:
            file.writelines(chunks)
        return
    if status is not None:
        # Refuses what opening it for writing does: a read-only file, one that runs.
        os.close(os.open(path, os.O_WRONLY))
    folder, name = os.path.split(os.path.realpath(path))
    _make_folders(folder)
    folder_descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _reported_as(path):
            _replace(folder_descriptor, name, status, chunks)
    except OSError as error:
        if status is None or error.errno not in _NOT_REPLACEABLE:
            raise
        _write_in_place(path, chunks)
        warnings.warn(
            f"{path} was written in place, since it cannot be replaced"
            f" ({error.strerror}): an interruption would have damaged it",
            stacklevel=3,
        )
    finally:
        os.close(folder_descriptor)


@contextlib.contextmanager
def _reported_as(path: str) -> Iterator[None]:
    """Gives errors the name of the file that is to be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _make_folders(folder: str) -> None:
    """Makes missing folders; without recursion, however many there are."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):  # Another process made it.
            os.mkdir(folder)


def _replace(
    folder: int, name: str, old: os.stat_result | None, chunks: Sequence[_Chunk]
) -> None:
    """Writes a new file and gives it the name of the old one."""
    # Not derived from the name, which may be as long as names can be.
    temporary = f".{secrets.token_hex(8)}.tmp"
    with _removed_unless_renamed(folder, temporary):
        descriptor = _open_unnamed(folder)
        has_name = descriptor is None
        if descriptor is None:
            # The kernel applies the umask, without a change that others would see.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            descriptor = os.open(temporary, flags, 0o666, dir_fd=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(chunks)
            file.flush()
            if old is not None:
                _copy_owner_and_mode(descriptor, old)
            os.fsync(descriptor)
            if not has_name:
                _link(descriptor, folder, temporary)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _open_unnamed(folder: int) -> int | None:
    """Opens a file without a name, which disappears with its process."""
    flags = getattr(os, "O_TMPFILE", 0)
    if not flags or not os.path.exists("/proc/self/fd"):
        return None
    try:
        return os.open(".", flags | os.O_WRONLY, 0o666, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            return None  # The file system or the kernel has no such files.
        raise


def _link(descriptor: int, folder: int, name: str) -> None:
    """Gives a file without a name one (open(2), O_TMPFILE)."""
    source = f"/proc/self/fd/{descriptor}"
    # Given a folder, Python calls linkat, which follows the link, instead of link.
    os.link(source, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)


@contextlib.contextmanager
def _removed_unless_renamed(folder: int, name: str) -> Iterator[None]:
    """Removes a temporary file if it is still there, also on SIGTERM."""

    def remove() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)

    def end(signal_number: int, frame: types.FrameType | None) -> None:
        remove()
        signal.signal(signal_number, signal.SIG_DFL)
        os.kill(os.getpid(), signal_number)

    # Only the main thread may set a handler, and another one is not replaced.
    handles = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if handles:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        remove()
        if handles:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _copy_owner_and_mode(descriptor: int, old: os.stat_result) -> None:
    new = os.fstat(descriptor)
    for uid, gid in ((old.st_uid, -1), (-1, old.st_gid)):
        if (uid, gid) not in ((new.st_uid, -1), (-1, new.st_gid)):
            # Giving a file away is root's, and to a group its members'.
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, uid, gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def _write_in_place(path: str, chunks: Sequence[_Chunk]) -> None:
    """Overwrites a file, after all that may fail was done elsewhere."""
    # Chunks may be views of the very file.
    with tempfile.TemporaryFile() as spool:
        spool.writelines(chunks)
        size = spool.tell()
        spool.seek(0)
        with open(path, "r+b") as file:
            old_size = os.fstat(file.fileno()).st_size
            try:
                if size:
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError:
                os.ftruncate(file.fileno(), old_size)
                raise
            while chunk := spool.read(1 << 20):
                file.write(chunk)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
