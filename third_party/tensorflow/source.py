"""The patched source tree of TensorFlow."""

import hashlib
import pathlib
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence

__all__ = [
    "MissingArchiveError",
    "apply",
    "changed_files",
    "check_archive",
    "hunks",
    "prepare",
]


class MissingArchiveError(Exception):
    """The archive is missing, or it is another one; the message says why."""


def check_archive(archive: pathlib.Path, sha256: str) -> None:
    """Raises MissingArchiveError unless the archive is there and has this SHA-256.

    Bazel has a file `release.missing` in its place that says why there is none.
    """
    if not archive.is_file():
        raise MissingArchiveError(f"{archive} does not exist")
    if archive.suffix == ".missing":
        raise MissingArchiveError(archive.read_text().strip())
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != sha256:
        raise MissingArchiveError(f"{archive} has the SHA-256 {actual}, not {sha256}")


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
    """Unpacks and patches a checked archive below `work`, or finds that done.

    The folder's name depends on the archive and the patches, so that another one is
    made when they change.

    Raises:
      RuntimeError: A patch does not apply.
    """
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
