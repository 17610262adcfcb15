"""The patched source tree of TensorFlow."""

import hashlib
import pathlib
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence

__all__ = ["MissingArchiveError", "apply", "changed_files", "hunks", "prepare"]


class MissingArchiveError(Exception):
    """The release was not downloaded; the message says why."""


def check_archive(archive: pathlib.Path) -> None:
    """Raises MissingArchiveError for the `release.missing` that stands in for one."""
    if archive.suffix == ".missing":
        raise MissingArchiveError(archive.read_text().strip())


def apply(patch: pathlib.Path, tree: pathlib.Path) -> str:
    """Applies a patch without fuzz and returns what `patch` prints.

    Raises:
      RuntimeError: It does not apply; the tree may then be half patched.
    """
    command = ["patch", "--strip=1", "--fuzz=0", "--forward", "--batch"]
    result = subprocess.run(
        [*command, "--no-backup-if-mismatch", f"--input={patch.resolve()}"],
        cwd=tree,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(f"{patch.name} does not apply:\n{result.stdout}")
    return result.stdout


def changed_files(patch: str) -> list[str]:
    """Names the files that a patch changes and does not create."""
    return re.findall(r"^--- a/(.+)$", patch, re.MULTILINE)


def hunks(patch: str, file: str) -> list[tuple[int, list[str]]]:
    """Returns the hunks of a file: first line in the old file, and lines with sign."""
    section = patch.split(f"+++ b/{file}\n", 1)[1].split("\n--- ", 1)[0]
    parts = re.split(r"^@@ -(\d+),?\d* \+\d+,?\d* @@.*\n", section, flags=re.MULTILINE)
    return [
        (int(start), body.splitlines())
        for start, body in zip(parts[1::2], parts[2::2], strict=True)
    ]


def prepare(
    archive: pathlib.Path, patches: Sequence[pathlib.Path], work: pathlib.Path
) -> pathlib.Path:
    """Unpacks and patches the archive below `work`, or finds that done.

    The folder's name depends on the archive and the patches, so that another one is
    made when they change.

    Raises:
      MissingArchiveError: There is no archive.
      RuntimeError: A patch does not apply.
    """
    check_archive(archive)
    digest = hashlib.sha256()
    for path in (archive, *patches):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    tree = work / f"source-{digest.hexdigest()[:16]}"
    if tree.exists():
        return tree
    unpacked = work / "source.partial"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    (root,) = unpacked.iterdir()
    for patch in patches:
        apply(patch, root)
    root.rename(tree)
    unpacked.rmdir()
    return tree
