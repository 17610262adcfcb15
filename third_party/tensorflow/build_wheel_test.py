"""The driver of the wheel's build, on a tiny source tree and a fake Bazel."""

import hashlib
import os
import pathlib
import platform
import stat
import subprocess
import sys
import tarfile

from absl.testing import absltest

_SCRIPT = pathlib.Path(__file__).with_name("build_wheel.py")
_FILE = "tensorflow/exporter.cc"
_PATCH = """\
--- a/tensorflow/exporter.cc
+++ b/tensorflow/exporter.cc
@@ -1 +1 @@
-int before;
+int after;
"""
# Fails on its first run, like a build that is interrupted.
_BAZELISK = """\
#!/bin/sh
# The variables of the stub that started the script do not reach Bazel.
[ -z "$PYTHONPATH$PYTHONSAFEPATH$RUNFILES_DIR" ] || exit 9
cat tensorflow/exporter.cc >> "$LOG"
echo "$@" >> "$LOG"
[ -e interrupted ] || { touch interrupted; exit 1; }
mkdir -p bazel-bin/tensorflow/tools/pip_package/wheel_house
echo wheel > bazel-bin/tensorflow/tools/pip_package/wheel_house/tensorflow-2.21.0.whl
"""


class BuildWheelTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        tree = self.folder / "tensorflow-2.21.0"
        (tree / "tensorflow").mkdir(parents=True)
        (tree / _FILE).write_text("int before;\n")
        with tarfile.open(self.folder / "release.tar.gz", "w:gz") as tar:
            tar.add(tree, tree.name)
        content = (self.folder / "release.tar.gz").read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        (self.folder / "change.patch").write_text(_PATCH)
        bazelisk = self.folder / "bin" / "bazelisk"
        bazelisk.parent.mkdir()
        bazelisk.write_text(_BAZELISK)
        bazelisk.chmod(bazelisk.stat().st_mode | stat.S_IXUSR)
        self.log = self.folder / "log"

    def _run(self, *arguments: str) -> subprocess.CompletedProcess:
        defaults = {
            "--archive": "release.tar.gz",
            "--sha256": self.sha256,
            "--patch": self.folder / "change.patch",
            "--out": "out",
            "--work": "work",
            "--jobs": 2,
            "--python": "3.11",
            "--min_disk_gb": 0,
            "--min_ram_gb_per_job": 0,
        }
        flags = [f"{name}={value}" for name, value in defaults.items()]
        return subprocess.run(
            [sys.executable, _SCRIPT, *flags, *arguments],
            env={
                **os.environ,
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join(sys.path),
                "BUILD_WORKING_DIRECTORY": str(self.folder),
                "LOG": str(self.log),
            },
            capture_output=True,
            text=True,
        )

    def test_goes_on_after_an_interruption(self):
        first = self._run()
        self.assertNotEqual(first.returncode, 0)
        self.assertIn("run the same command again", first.stderr)
        second = self._run()
        self.assertEqual(second.returncode, 0, second.stderr)
        wheel = self.folder / "out" / "tensorflow-2.21.0.whl"
        self.assertEqual(second.stdout.strip(), str(wheel))
        self.assertEqual(wheel.read_text(), "wheel\n")
        # The same patched tree and the same command, twice.
        lines = self.log.read_text().splitlines()
        self.assertEqual(lines[0], "int after;")
        self.assertEqual(lines[:2], lines[2:])
        name = {"x86_64": "tensorflow_cpu"}.get(platform.machine(), "tensorflow")
        for option in (
            "build //tensorflow/tools/pip_package:wheel",
            "--repo_env=USE_PYWRAP_RULES=1",
            f"--repo_env=WHEEL_NAME={name}",
            "--repo_env=HERMETIC_PYTHON_VERSION=3.11",
            "--jobs=2",
        ):
            self.assertIn(option, lines[1])

    def test_says_what_it_needs_and_how_it_builds(self):
        result = self._run("--min_disk_gb=1", "--dry_run")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, "asks for 1 GB of disk .* takes 1 to 2 hours")
        self.assertIn("bazelisk --output_user_root=", result.stderr)
        self.assertFalse(self.log.exists())

    def test_names_every_obstacle_before_it_starts(self):
        missing = self.folder / "release.missing"
        missing.write_text("it could not be downloaded\n")
        result = self._run(
            f"--archive={missing}",
            "--min_disk_gb=1000000000",
            "--min_ram_gb_per_job=1000000",
        )
        self.assertNotEqual(result.returncode, 0)
        for message in (
            "it could not be downloaded",
            "GB free and takes 0 GB, together less than --min_disk_gb=1000000000",
            "GB of memory are less than",
        ):
            self.assertIn(message, result.stderr)
        self.assertFalse(self.log.exists())

    def test_another_archive(self):
        result = self._run("--sha256=0123")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(f"has the SHA-256 {self.sha256}, not 0123", result.stderr)
        result = self._run("--archive=absent.tar.gz")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("absent.tar.gz does not exist", result.stderr)

    def test_patch_does_not_apply(self):
        change = self.folder / "change.patch"
        change.write_text(_PATCH.replace("int before", "int other"))
        result = self._run()
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("change.patch does not apply", result.stderr)
        # No half-patched tree is left to be taken for a finished one.
        self.assertEmpty(list((self.folder / "work").glob("source-*")))


if __name__ == "__main__":
    absltest.main()
