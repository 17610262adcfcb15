"""The wheel, installed with pip into fresh virtual environments, without Bazel.

One for every version of Python that the package supports and the machine has.
"""

import functools
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import torch
from absl.testing import absltest, parameterized

import ai_edge_rms_norm as arn
from tests import wheel_platform

# As the classifiers of pyproject.toml say, which test_classifiers compares.
_VERSIONS = ("3.10", "3.11", "3.12", "3.13")

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


def find_interpreter(version: str) -> str | None:
    """Returns a Python of the version: this one, else one of PATH or of pyenv."""
    candidates = [sys.executable, shutil.which(f"python{version}")]
    for root in (os.environ.get("PYENV_ROOT"), "~/.pyenv"):
        if root:
            versions = pathlib.Path(root).expanduser() / "versions"
            candidates += sorted(versions.glob(f"{version}.*/bin/python"))
    code = "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        # pyenv puts programs on PATH that may refuse to run.
        found = run(candidate, "-c", code)
        if found.returncode == 0 and found.stdout.decode().strip() == version:
            return str(candidate)
    return None


class WheelTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.wheel = find_wheel()
        cls.folder = pathlib.Path(tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR")))
        cls.addClassCleanup(shutil.rmtree, cls.folder)

    @classmethod
    @functools.cache
    def install(cls, version: str) -> str:
        """Returns the Python of an environment with the wheel, made at first use."""
        interpreter = find_interpreter(version)
        if interpreter is None:
            raise absltest.SkipTest(
                f"Python {version} with ensurepip is neither on PATH nor among pyenv's"
            )
        environment = cls.folder / version
        python = str(environment / "bin" / "python")
        for command in (
            (interpreter, "-m", "venv", environment),
            (python, "-m", "pip", "install", "--no-compile", cls.wheel),
        ):
            result = run(*command)
            if result.returncode:
                raise RuntimeError(result.stderr.decode())
        return python

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

    def test_classifiers(self):
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
            metadata = archive.read(name).decode()
        prefix = "Classifier: Programming Language :: Python :: 3."
        for version in _VERSIONS:
            self.assertIn(prefix + version.removeprefix("3."), metadata.splitlines())
        self.assertEqual(metadata.count(prefix), len(_VERSIONS))

    @parameterized.parameters(*_VERSIONS)
    def test_runs_a_model(self, version: str):
        python = self.install(version)
        module = arn.RMSNorm(640).eval()
        x = torch.randn(5, 640, generator=torch.Generator().manual_seed(0))
        folder = pathlib.Path(self.create_tempdir().full_path)
        files = [folder / name for name in ("norm.tflite", "x.npy", "y.npy")]
        arn.convert(module, (x,)).export(files[0])
        np.save(files[1], x.numpy())
        result = run(python, "-c", _RUN, *files, cwd="/")
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        # The imported package is in the fresh environment, which has this Python.
        packages = self.folder / version / "lib" / f"python{version}"
        self.assertStartsWith(result.stdout.decode(), str(packages))
        expected = module(x).detach().numpy()
        np.testing.assert_allclose(np.load(files[2]), expected, rtol=1e-5, atol=1e-6)

    def test_says_what_is_missing(self):
        python = self.install(f"{sys.version_info[0]}.{sys.version_info[1]}")
        result = run(python, "-c", "import ai_edge_rms_norm as a; a.RMSNorm")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(b"ai-edge-rms-norm[torch]", result.stderr)


if __name__ == "__main__":
    absltest.main()
