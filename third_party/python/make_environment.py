"""Makes the virtual environment of a lock file and prints its interpreter.

    python3 make_environment.py requirements.lock

The environment lies in ${XDG_CACHE_HOME:-~/.cache}/ai-edge-rms-norm, under a name that
depends on the lock file and on the interpreter. One that is complete is used as it is.
Uses the standard library only, since it runs before anything is installed.
"""

import fcntl
import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import venv

MINIMUM_VERSION = (3, 11)  # of the packages in the locks

# Installed without a hash: a CPU build and a CUDA build of one PyTorch version have the
# same name and version, but other files, depending on the index.
UNHASHED = frozenset({"torch"})


def cache_folder() -> pathlib.Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(root, "ai-edge-rms-norm")


def environment_folder(lock: pathlib.Path) -> pathlib.Path:
    key = hashlib.sha256(lock.read_bytes())
    key.update(f"{sys.base_prefix} {sys.version} {platform.machine()}".encode())
    return cache_folder() / f"{lock.stem}-{key.hexdigest()[:16]}"


def make(folder: pathlib.Path, lock: pathlib.Path) -> None:
    # A copied interpreter would not find its standard library from everywhere.
    venv.create(folder, clear=True, with_pip=True, symlinks=True)
    hashed, unhashed = split(lock.read_text())
    # pip resolves nothing: some packages pin others that exist for no machine but
    # x86-64.
    requirements = folder / "hashed.txt"
    requirements.write_text(hashed)
    pip_install(folder, "--no-deps", "--require-hashes", "--requirement", requirements)
    if unhashed:
        pip_install(folder, "--no-deps", *unhashed)
    # Names that the lock lacks: the libraries of a PyTorch that is built for CUDA,
    # which pins them. One that is built for the CPU needs nothing more.
    locked = pins(lock.read_text())
    if any(pin.startswith("torch==") for pin in locked):
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(locked) + "\n")
        pip_install(folder, "--constraint", constraints, "torch")


def pins(lock: str) -> list[str]:
    """Returns the requirements NAME==VERSION of a lock's text, without hashes."""
    return re.findall(r"^[\w.-]+==[^\s;\\]+", lock, re.MULTILINE)


def split(lock: str) -> tuple[str, list[str]]:
    """Splits a lock's text into what pip checks by hash and the other requirements.

    Raises:
      ValueError: A requirement has no hash and is not in UNHASHED.
    """
    hashed, unhashed = [], []
    # A requirement goes on over the lines that end in a backslash.
    for line in lock.replace("\\\n", " ").splitlines():
        if not line or line.startswith("#"):
            continue
        if "--hash=" in line:
            hashed.append(line)
        elif line.split("==")[0] in UNHASHED:
            unhashed.append(line)
        else:
            raise ValueError(f"{line!r} has no --hash in the lock")
    return "\n".join(hashed) + "\n", unhashed


def pip_install(folder: pathlib.Path, *arguments: str | os.PathLike) -> None:
    command = [folder / "bin" / "python", "-m", "pip", "install"]
    command += ["--disable-pip-version-check", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        command,
        check=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        cwd=folder,
    )


def environment(lock: pathlib.Path) -> pathlib.Path:
    """Returns the interpreter of a lock file's environment, made if need be.

    Raises:
      subprocess.CalledProcessError: pip failed; its messages are on stderr.
    """
    lock = lock.resolve()
    folder = environment_folder(lock)
    complete = folder / "complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Two checkouts may build at the same time.
    with open(f"{folder}.lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not complete.exists():
            try:
                make(folder, lock)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            complete.touch()
    return folder / "bin" / "python"


def main() -> None:
    if sys.version_info < MINIMUM_VERSION:
        sys.exit(
            f"{sys.executable} is Python {platform.python_version()};"
            f" {'.'.join(map(str, MINIMUM_VERSION))} or newer is needed"
            " (PYTHON_BIN_PATH names another interpreter)"
        )
    print(environment(pathlib.Path(sys.argv[1])))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"pip failed with status {error.returncode}; its messages are above")
