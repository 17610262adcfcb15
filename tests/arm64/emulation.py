"""An ARM64 Debian 12 whose Python runs under qemu on another machine.

The root file system is extracted from Debian's packages and entered with chroot and an
explicit qemu-aarch64-static, in a mount namespace of its own: it takes root, but no
binfmt_misc and no other privilege, and nothing of this machine's packages is visible
inside. Only Python itself can be started there. Root file system and wheels are cached
beside the project's Python environments.
"""

import fcntl
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence

from third_party.python import make_environment

PYTHON = "3.11"  # Debian 12's
_SUITE = "bookworm"
_GLIBC_MINOR = 36
_PACKAGES = ("libgomp1", "libstdc++6", "python3")
_QEMU = "/usr/bin/qemu-aarch64-static"
_TIMEOUT = 1800  # seconds
# /proc/cpuinfo of a Neoverse N1, per processor. qemu 7 shows that of this
# machine, on which LiteRT crashes as soon as XNNPACK starts.
_CPUINFO = """\
processor\t: {}
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""


def unavailable() -> str | None:
    """Returns why there is no emulation here; None if there is."""
    if platform.machine() == "aarch64":
        return "this is an ARM64 machine: the other tests run on it as they are"
    for program in (_QEMU, "mmdebstrap", "unshare"):
        if not shutil.which(program):
            return f"{program} is not installed"
    if os.geteuid() != 0:
        return "chroot needs root"
    namespace = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    if namespace.returncode:
        return f"no mount namespace: {namespace.stderr.decode().strip()}"
    return None


def _cached(name: str, key: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Returns a folder of the cache, made by `make` if it is not there yet."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = make_environment.cache_folder() / f"{name}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                make(pathlib.Path(temporary, folder.name))
                os.rename(os.path.join(temporary, folder.name), folder)
    return folder


def _run(command: Sequence[str | os.PathLike], **kwargs) -> str:
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_TIMEOUT,
        text=True,
        **kwargs,
    )
    if result.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, command))} failed with status {result.returncode}:"
            f"\n{result.stdout}"
        )
    return result.stdout


def root_folder() -> pathlib.Path:
    """Returns the root file system."""

    def make(folder: pathlib.Path) -> None:
        # Unpacked is enough: what would be configured are services and caches.
        _run(
            [
                "mmdebstrap",
                "--variant=extract",
                "--architectures=arm64",
                f"--include={','.join(_PACKAGES)}",
                _SUITE,
                folder,
            ]
        )
        for name in ("proc", "sys", "dev", "tmp", "mnt"):
            (folder / name).mkdir(exist_ok=True)
        (folder / _QEMU.lstrip("/")).touch()
        (folder / "etc" / "passwd").write_text("root:x:0:0:root:/tmp:/bin/sh\n")

    return _cached("arm64-root", f"{_SUITE} {_PACKAGES}", make)


def install(folder: pathlib.Path, *arguments: str | os.PathLike) -> None:
    """Installs wheels for the root file system with pip, run by this machine."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--implementation=cp"]
    command += [f"--python-version={PYTHON}", f"--target={folder}"]
    command += [
        f"--platform=manylinux_2_{minor}_aarch64"
        for minor in range(_GLIBC_MINOR, 16, -1)
    ]
    command += ["--platform=manylinux2014_aarch64", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    _run(command, env=environment)


def lock_folder(lock: pathlib.Path) -> pathlib.Path:
    """Returns a folder with all packages of a lock file."""
    # pip evaluates conditions for this machine, also for another platform.
    # A requirement goes on, with its hashes, over the lines that end in a backslash.
    requirements = lock.read_text().replace("\\\n", " ").splitlines(keepends=True)
    pins = "".join(r for r in requirements if 'platform_machine == "x86_64"' not in r)

    def make(folder: pathlib.Path) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".lock") as file:
            file.write(pins)
            file.flush()
            install(folder, "--no-deps", f"--requirement={file.name}")

    return _cached(f"arm64-{lock.stem}", pins, make)


def run_python(
    *arguments: str, folders: Mapping[str, pathlib.Path], path: Sequence[str]
) -> str:
    """Runs Python in the root file system.

    Args:
      *arguments: Of the interpreter.
      folders: By name, folders of this machine that are visible as /mnt/NAME.
      path: Names among them that Python imports from.

    Returns:
      Its stdout and stderr.

    Raises:
      RuntimeError: It failed; with its output.
    """
    root = root_folder()
    mounts = {f"/mnt/{name}": folder for name, folder in folders.items()}
    script = ["mount --bind /proc proc", "mount --rbind /sys sys"]
    script += ["mount --rbind /dev dev", "mount -t tmpfs tmpfs tmp"]
    script += [f'mount --bind "{_QEMU}" ".{_QEMU}"', "mount -t tmpfs tmpfs mnt"]
    script += ['printf %s "$CPUINFO" > mnt/cpuinfo']
    script += ["mount --bind mnt/cpuinfo proc/cpuinfo"]
    for inside, outside in mounts.items():
        script += [f'mkdir -p ".{inside}"', f'mount --bind "{outside}" ".{inside}"']
    script += ['exec chroot . "$@"']
    environment = {
        "CPUINFO": "".join(map(_CPUINFO.format, range(os.cpu_count()))),
        "HOME": "/tmp",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": ":".join(f"/mnt/{name}" for name in path),
    }
    command = ["unshare", "--mount", "--fork", "sh", "-euc", "\n".join(script), "sh"]
    # Pointer authentication by a cheap hash: the architecture's takes minutes.
    command += [_QEMU, "-cpu", "max,pauth-impdef=on"]
    command += [f"/usr/bin/python{PYTHON}", *arguments]
    return _run(command, cwd=root, env=environment)
