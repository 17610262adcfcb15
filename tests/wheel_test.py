"""The wheel, installed with pip into a fresh virtual environment, without Bazel."""

import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import torch
from absl.testing import absltest

import ai_edge_rms_norm as arn
from tests import wheel_platform

# Runs in the fresh environment, on the files that its arguments name.
_RUN = """
import sys
import numpy as np
import ai_edge_rms_norm as arn

assert "torch" not in sys.modules
model, x, y = sys.argv[1:]
interpreter = arn.Interpreter(model_path=model)
np.save(y, interpreter.get_signature_runner()(args_0=np.load(x))["output_0"])
print(arn.__file__, arn.__version__, arn.kernel_variant())
"""


def find_wheel() -> pathlib.Path:
    """Returns the wheel among the files that Bazel gives to the test."""
    for folder, _, names in os.walk(os.environ["TEST_SRCDIR"], followlinks=True):
        for name in names:
            if name.endswith(".whl"):
                return pathlib.Path(folder, name).resolve()
    raise FileNotFoundError("no wheel in the runfiles")


def run(*command, **kwargs) -> subprocess.CompletedProcess:
    # The test's own environment must not reach into the fresh one.
    environment = {
        name: value for name, value in os.environ.items() if "PYTHON" not in name
    }
    return subprocess.run(command, env=environment, capture_output=True, **kwargs)


class WheelTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.wheel = find_wheel()
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.python = str(cls.folder / "venv" / "bin" / "python")
        created = run(sys.executable, "-m", "venv", str(cls.folder / "venv"))
        if created.returncode:
            raise RuntimeError(created.stderr.decode())
        installed = run(cls.python, "-m", "pip", "install", str(cls.wheel))
        if installed.returncode:
            raise RuntimeError(installed.stderr.decode())

    def test_contents(self):
        with zipfile.ZipFile(self.wheel) as archive:
            names = archive.namelist()
        for name in ("__init__.py", "py.typed", "_native/librms_norm_delegate.so"):
            self.assertIn(f"ai_edge_rms_norm/{name}", names)
        strays = [n for n in names if n.endswith("_test.py") or "BUILD" in n]
        self.assertEmpty(strays)
        self.assertRegex(self.wheel.name, r"^ai_edge_rms_norm-\d+\.\d+\.\d+-py3-none-")

    def test_platform_tag(self):
        problems = wheel_platform.problems(self.wheel, platform.machine())
        self.assertEmpty(problems)

    def test_runs_a_model(self):
        module = arn.RMSNorm(640).eval()
        x = torch.randn(5, 640, generator=torch.Generator().manual_seed(0))
        files = [self.folder / name for name in ("norm.tflite", "x.npy", "y.npy")]
        arn.convert(module, (x,)).export(files[0])
        np.save(files[1], x.numpy())
        result = run(self.python, "-c", _RUN, *files, cwd="/")
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        # What was imported is in the fresh environment.
        self.assertIn(str(self.folder), result.stdout.decode())
        expected = module(x).detach().numpy()
        np.testing.assert_allclose(np.load(files[2]), expected, rtol=1e-5, atol=1e-6)

    def test_says_what_is_missing(self):
        result = run(self.python, "-c", "import ai_edge_rms_norm as a; a.RMSNorm")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(b"ai-edge-rms-norm[torch]", result.stderr)


if __name__ == "__main__":
    absltest.main()
