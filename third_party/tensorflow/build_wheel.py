"""Builds the patched TensorFlow wheel, on the machine that it is for.

    bazel run //third_party/tensorflow:build_wheel -- --out=DIR

The source tree and Bazel's output are kept in --work, so that an interrupted build goes
on where it stopped. TensorFlow's own Bazel version is used, through Bazelisk. Where the
release cannot be downloaded, --archive=FILE names a copy of it.
"""

import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from absl import app, flags

from third_party.tensorflow import source

_TARGET = "//tensorflow/tools/pip_package:wheel"
_WHEEL_HOUSE = "bazel-bin/tensorflow/tools/pip_package/wheel_house"

# As TensorFlow's own wheels are called: the aarch64 one is the CPU build.
_WHEEL_NAMES = {"x86_64": "tensorflow_cpu", "aarch64": "tensorflow"}

_OUT = flags.DEFINE_string("out", None, "Folder for the wheel.", required=True)
_WORK = flags.DEFINE_string(
    "work",
    os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
        "ai-edge-rms-norm/tensorflow",
    ),
    "Folder for the source tree and Bazel's output; kept.",
)
_ARCHIVE = flags.DEFINE_string("archive", None, "The release.", required=True)
_SHA256 = flags.DEFINE_string("sha256", None, "SHA-256 of the release.", required=True)
_PATCHES = flags.DEFINE_multi_string("patch", [], "Patches, in order.")
_JOBS = flags.DEFINE_integer("jobs", os.cpu_count(), "Parallel actions.")
_PYTHON = flags.DEFINE_string(
    "python",
    f"{sys.version_info.major}.{sys.version_info.minor}",
    "Python version that the wheel is for.",
)
_BAZEL_OPTIONS = flags.DEFINE_multi_string(
    "bazel_option", [], "Further options of `bazel build`."
)
# Not measured here: a full build is out of reach of the machine this was written on.
# From what public build recipes provide.
_MIN_DISK_GB = flags.DEFINE_integer("min_disk_gb", 60, "Free disk space to ask for.")
_MIN_RAM_GB_PER_JOB = flags.DEFINE_float(
    "min_ram_gb_per_job", 2.0, "Memory to ask for, per parallel action."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check and print, do not build.")


_TIME = "1 to 2 hours on a large host, longer on a smaller one"


def _say(text: str) -> None:
    # Standard output has the wheel's path only.
    print(text, file=sys.stderr, flush=True)


def _gigabytes(size: int) -> float:
    return size / 1e9


def _size(folder: pathlib.Path) -> int:
    """Returns the disk space that a folder takes, in bytes."""
    result = subprocess.run(
        ["du", "--summarize", "--block-size=1", folder],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(result.stdout.split()[0])


def nested_environment() -> dict[str, str]:
    """Returns the environment without that of the stub which started this program."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONSAFEPATH")
        and not name.startswith("RUNFILES_")
    }


def obstacles(archive: pathlib.Path, work: pathlib.Path) -> list[str]:
    """Says what this machine lacks for the build."""
    found = []
    try:
        source.check_archive(archive, _SHA256.value)
    except source.MissingArchiveError as error:
        found.append(str(error))
    if platform.machine() not in _WHEEL_NAMES:
        found.append(f"the machine is {platform.machine()}, not x86_64 or aarch64")
    for tool in ("bazelisk", "patch"):
        if not shutil.which(tool):
            found.append(f"{tool} is not on PATH")
    free, used = _gigabytes(shutil.disk_usage(work).free), _gigabytes(_size(work))
    if free + used < _MIN_DISK_GB.value:
        found.append(
            f"{work} has {free:.0f} GB free and takes {used:.0f} GB, together less than"
            f" --min_disk_gb={_MIN_DISK_GB.value}"
        )
    ram = _gigabytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    needed = _JOBS.value * _MIN_RAM_GB_PER_JOB.value
    if ram < needed:
        found.append(
            f"{ram:.0f} GB of memory are less than {needed:.0f} GB for"
            f" --jobs={_JOBS.value}"
        )
    return found


def command(work: pathlib.Path) -> list[str]:
    """Returns the command that builds the wheel in the source tree."""
    return [
        "bazelisk",
        f"--output_user_root={work / 'bazel'}",
        "build",
        _TARGET,
        "--repo_env=USE_PYWRAP_RULES=1",
        f"--repo_env=WHEEL_NAME={_WHEEL_NAMES[platform.machine()]}",
        f"--repo_env=HERMETIC_PYTHON_VERSION={_PYTHON.value}",
        f"--jobs={_JOBS.value}",
        *_BAZEL_OPTIONS.value,
    ]


def copy_wheel(tree: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Copies the built wheel to `out`, completely or not at all.

    Raises:
      RuntimeError: There is not exactly one.
    """
    wheels = list((tree / _WHEEL_HOUSE).glob("*.whl"))
    if len(wheels) != 1:
        raise RuntimeError(f"expected one wheel in {tree / _WHEEL_HOUSE}, got {wheels}")
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f".{wheels[0].name}.partial"
    shutil.copyfile(wheels[0], temporary)
    return temporary.rename(out / wheels[0].name)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    # `bazel run` starts in the runfiles; paths are meant from where it was typed.
    typed_in = pathlib.Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    out = typed_in / _OUT.value
    work = typed_in / _WORK.value
    archive = pathlib.Path(_ARCHIVE.value)
    if not archive.exists():
        archive = typed_in / archive
    work.mkdir(parents=True, exist_ok=True)
    ram = _JOBS.value * _MIN_RAM_GB_PER_JOB.value
    _say(
        f"The build asks for {_MIN_DISK_GB.value} GB of disk in {work} and {ram:.0f} GB"
        f" of memory, and takes {_TIME}."
    )
    found = obstacles(archive, work)
    if found:
        sys.exit("The build cannot start:\n  " + "\n  ".join(found))
    patches = [pathlib.Path(patch) for patch in _PATCHES.value]
    try:
        tree = source.prepare(archive, patches, work)
    except RuntimeError as error:
        sys.exit(str(error))
    build = command(work)
    _say(f"In {tree}: {shlex.join(build)}")
    if _DRY_RUN.value:
        return
    result = subprocess.run(build, cwd=tree, env=nested_environment())
    if result.returncode:
        sys.exit(f"The build failed; run the same command again to go on in {work}")
    print(copy_wheel(tree, out))


if __name__ == "__main__":
    app.run(main)
