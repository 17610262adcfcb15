"""Installs from locks whose one package is a wheel made here; nothing is downloaded."""

import base64
import hashlib
import os
import pathlib
import subprocess
import tempfile
import zipfile
from unittest import mock

from absl.testing import absltest

from third_party.python import make_environment


def make_wheel(folder: pathlib.Path) -> str:
    """Writes probe-1.0's wheel into `folder`; returns its SHA-256 in hex."""
    files = {
        "probe.py": b"VALUE = 7\n",
        "probe-1.0.dist-info/METADATA": (
            b"Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n"
        ),
        "probe-1.0.dist-info/WHEEL": (
            b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = "probe-1.0.dist-info/RECORD,,\n"
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
        record += f"{name},sha256={digest.rstrip('=')},{len(data)}\n"
    wheel = folder / "probe-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("probe-1.0.dist-info/RECORD", record)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


class MakeEnvironmentTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.digest = make_wheel(self.folder)
        variables = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_FIND_LINKS": str(self.folder),
            "PIP_NO_INDEX": "1",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }
        self.enter_context(mock.patch.dict(os.environ, variables))

    def environment(self, digest: str) -> pathlib.Path:
        lock = self.folder / "probe.lock"
        lock.write_text(f"# Comment.\nprobe==1.0 \\\n    --hash=sha256:{digest}\n")
        return make_environment.environment(lock)

    def test_right_hash(self):
        python = self.environment(self.digest)
        subprocess.run(
            [python, "-c", "import probe; assert probe.VALUE == 7"], check=True
        )

    def test_wrong_hash_is_refused(self):
        with self.assertRaises(subprocess.CalledProcessError):
            self.environment("0" * 64)
        # Nothing is left that the next call would take for complete.
        self.assertEmpty(list((self.folder / "cache").rglob("complete")))

    def test_missing_hash_is_refused(self):
        with self.assertRaisesRegex(ValueError, "'probe==1.0' has no --hash"):
            make_environment.split("probe==1.0\n")

    def test_split(self):
        hashed, unhashed = make_environment.split(
            "a==1 \\\n    --hash=sha256:0\ntorch==2.13.0\n"
        )
        self.assertEqual(hashed.split(), ["a==1", "--hash=sha256:0"])
        self.assertEqual(unhashed, ["torch==2.13.0"])


if __name__ == "__main__":
    absltest.main()
