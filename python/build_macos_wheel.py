"""Builds the wheel for macOS on Apple silicon, on a Mac or with Zig on Linux.

    PYTHONPATH=. python3 python/build_macos_wheel.py --out DIR

CMake builds the delegate (kernels/CMakeLists.txt); Zig, lief and setuptools come from
third_party/python/requirements-macos.lock.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

from third_party.python import make_environment

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOCK = ROOT / "third_party" / "python" / "requirements-macos.lock"
# The first macOS for Apple silicon.
OLDEST_MACOS = "11.0"


def _compiler(python: pathlib.Path) -> list[str]:
    if sys.platform == "darwin":
        return [
            f"-DCMAKE_OSX_DEPLOYMENT_TARGET={OLDEST_MACOS}",
            "-DCMAKE_OSX_ARCHITECTURES=arm64",
        ]
    find = "import ziglang; print(ziglang.__path__[0])"
    zig = subprocess.check_output([python, "-c", find], text=True).strip()
    return [
        f"--toolchain={ROOT / 'third_party' / 'toolchains' / 'zig.cmake'}",
        f"-DZIG={zig}/zig",
        f"-DZIG_TARGET=aarch64-macos.{OLDEST_MACOS}",
    ]


def build_library(python: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Builds the delegate in `folder`; returns its path."""
    configure = ["cmake", "-S", ROOT / "kernels", "-B", folder]
    configure += ["-DCMAKE_BUILD_TYPE=Release", *_compiler(python)]
    subprocess.run(configure, check=True, stdout=sys.stderr)
    build = ["cmake", "--build", folder, "--parallel"]
    subprocess.run(build, check=True, stdout=sys.stderr)
    return folder / "librms_norm_delegate.dylib"


def build(python: pathlib.Path, out: pathlib.Path) -> None:
    """Builds the wheel into the folder `out`, with the environment's interpreter."""
    package = ROOT / "python" / "ai_edge_rms_norm"
    files = [ROOT / name for name in ("LICENSE", "README.md", "pyproject.toml")]
    files += [ROOT / "setup.py", package / "py.typed", *sorted(package.rglob("*.py"))]
    with tempfile.TemporaryDirectory() as folder:
        library = build_library(python, pathlib.Path(folder))
        arguments = [f"{file.relative_to(ROOT)}={file}" for file in files]
        arguments.append(f"python/ai_edge_rms_norm/_native/{library.name}={library}")
        command = [python, ROOT / "python" / "build_wheel.py", "--out", out]
        subprocess.run([*command, *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    build(make_environment.environment(LOCK), parser.parse_args().out.resolve())


if __name__ == "__main__":
    main()
