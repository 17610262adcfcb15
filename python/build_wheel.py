"""Builds the wheel from the files that Bazel hands over; see wheel.bzl.

    build_wheel.py --out DIR PATH=FILE [PATH=FILE ...]

PATH is a file's place below the project's root. The platform tag is the oldest that
auditwheel finds the delegate to run on, or for macOS what the delegate's file says.
Without the delegate the wheel is for any.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

_MACHINES = {62: "x86_64", 183: "aarch64"}


def _run(module: str, *arguments: str, cwd: pathlib.Path) -> str:
    # The same file times in every build give the same wheel.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        cwd=cwd,
        env=environment,
        text=True,
    )
    if result.returncode:
        sys.exit(f"{module} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def _machine(library: pathlib.Path) -> str:
    """Returns the architecture of an ELF file (e_machine, System V ABI)."""
    header = library.read_bytes()[:20]
    return _MACHINES[int.from_bytes(header[18:20], "little")]


def _retag(wheel: pathlib.Path, platform_tag: str) -> pathlib.Path:
    tags = ["--python-tag=py3", "--abi-tag=none", f"--platform-tag={platform_tag}"]
    name = _run("wheel", "tags", "--remove", *tags, wheel.name, cwd=wheel.parent)
    return wheel.parent / name.strip()


def _tag_linux(wheel: pathlib.Path, delegate: pathlib.Path) -> pathlib.Path:
    wheel = _retag(wheel, f"linux_{_machine(delegate)}")
    report = _run("auditwheel", "show", "--json", str(wheel), cwd=wheel.parent)
    problems = json.loads(report)["external_libs"]
    if problems:
        sys.exit(f"the wheel needs other libraries: {problems}")
    return _retag(wheel, json.loads(report)["overall_tag"])


def build(files: dict[str, pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """Builds the wheel of `files`, by path below the root; returns its path in out."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder, "source")
        for path, file in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, root / path)
        _run(
            "pip",
            "wheel",
            "--no-build-isolation",
            "--no-deps",
            "--no-index",
            "--wheel-dir=..",
            ".",
            cwd=root,
        )
        # The delegate is loaded by path: no Python version, no ABI.
        (wheel,) = root.parent.glob("*.whl")
        for delegate in root.rglob("_native/*.so"):
            wheel = _tag_linux(wheel, delegate)
        for delegate in root.rglob("_native/*.dylib"):
            import macho  # lief is in the environment of build_macos_wheel.py only

            wheel = _retag(wheel, macho.platform_tag(delegate))
        out.mkdir(parents=True, exist_ok=True)
        return pathlib.Path(shutil.move(wheel, out / wheel.name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("files", nargs="+", metavar="PATH=FILE")
    arguments = parser.parse_args()
    files = dict(file.split("=", 1) for file in arguments.files)
    build({p: pathlib.Path(f) for p, f in files.items()}, arguments.out)


if __name__ == "__main__":
    main()
