"""The whole pipeline in an ARM64 Debian: PyTorch to op 173 to the interpreter.

Runs tensorflow_ai_edge_torch_test.py there, with the packages of
requirements-aarch64.lock and the ARM64 wheel.
"""

import pathlib
import shutil
import tempfile
import unittest

from absl import flags
from absl.testing import absltest

from tests.arm64 import emulation

_WHEEL = flags.DEFINE_string("wheel", None, "Path of the aarch64 wheel.", required=True)
_EXPORTER = flags.DEFINE_string(
    "exporter",
    None,
    "Path of the aarch64 library of //third_party/tensorflow:interposed_exporter.",
    required=True,
)
_PROJECT = pathlib.Path(__file__).resolve().parents[2]


def setUpModule():
    if reason := emulation.unavailable():
        raise unittest.SkipTest(reason)


class Arm64ConversionTest(absltest.TestCase):
    def test_pipeline(self):
        lock = _PROJECT / "third_party" / "python" / "requirements-aarch64.lock"
        with tempfile.TemporaryDirectory() as site:
            emulation.install(site, "--no-deps", _WHEEL.value)
            # The module loads the library beside it.
            exporter = pathlib.Path(site, "third_party", "tensorflow")
            exporter.mkdir(parents=True)
            module = "third_party/tensorflow/interposed_exporter.py"
            shutil.copy(_PROJECT / module, exporter)
            shutil.copy(_EXPORTER.value, exporter)
            print(
                emulation.run_python(
                    "/mnt/tests/tensorflow_backend/tensorflow_ai_edge_torch_test.py",
                    folders={
                        "packages": emulation.lock_folder(lock),
                        "site": pathlib.Path(site),
                        "tests": _PROJECT / "tests",
                        "project/demo": _PROJECT / "demo",
                    },
                    path=["site", "project", "packages"],
                )
            )


if __name__ == "__main__":
    absltest.main()
