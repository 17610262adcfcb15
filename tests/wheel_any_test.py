"""The wheel without the delegate, unpacked: all but running a model works."""

import os
import pathlib
import subprocess
import sys
import zipfile

import torch
from absl.testing import absltest

import ai_edge_rms_norm as arn

# Runs on the unpacked wheel and the file that its arguments name.
_RUN = """
import sys

wheel, decomposed = sys.argv[1:]
sys.path.insert(0, wheel)
import ai_edge_rms_norm as arn

assert arn.__file__.startswith(wheel), arn.__file__
model, report = arn.fuse(decomposed)
assert len(report.fused) == 1, report
for encoding in arn.Encoding:
    (op,) = model.translate(encoding).rms_norm_ops()
    assert op.encoding == encoding, op
for run in (
    arn.delegate_path,
    arn.kernel_variant,
    lambda: arn.Interpreter(model_content=model.model_content()),
):
    try:
        run()
    except FileNotFoundError as error:
        print(error)
    else:
        raise AssertionError(run)
"""


class Norm(torch.nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class WheelAnyTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        (cls.wheel,) = pathlib.Path(os.environ["WHEEL_FOLDER"]).glob("*.whl")

    def test_has_no_shared_library(self):
        self.assertEndsWith(self.wheel.name, "-py3-none-any.whl")
        with zipfile.ZipFile(self.wheel) as archive:
            names = archive.namelist()
            (metadata,) = [n for n in names if n.endswith(".dist-info/WHEEL")]
            text = archive.read(metadata).decode()
        self.assertIn("ai_edge_rms_norm/py.typed", names)
        self.assertEmpty([n for n in names if "_native" in n or ".so" in n])
        self.assertIn("Root-Is-Purelib: true", text)

    def test_fuses_translates_and_says_what_is_missing(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        with zipfile.ZipFile(self.wheel) as archive:
            archive.extractall(folder / "wheel")
        path = folder / "decomposed.tflite"
        arn.convert(Norm().eval(), (torch.ones(2, 64),)).export(path)
        result = subprocess.run(
            [sys.executable, "-c", _RUN, str(folder / "wheel"), str(path)],
            capture_output=True,
            cwd=folder,
            text=True,
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout.count("has no delegate"), 3)
        self.assertIn("Linux x86_64 and Linux aarch64", result.stdout)


if __name__ == "__main__":
    absltest.main()
