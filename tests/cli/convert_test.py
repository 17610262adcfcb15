"""The command convert, and what doctor says of a part that fails."""

import pathlib
import subprocess
import sys

from absl.testing import absltest

import ai_edge_rms_norm as arn
from ai_edge_rms_norm import diagnosis
from ai_edge_rms_norm.conversion import sources

_FACTORY = """
import torch
def make():
    return torch.nn.RMSNorm(64, 1e-5).eval(), torch.ones(3, 64)
def wrong():
    return 1
"""


class ConvertTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.source = self.folder / "model.py"
        self.source.write_text(_FACTORY)
        self.output = self.folder / "model.tflite"

    def run_convert(self, source, *arguments) -> subprocess.CompletedProcess:
        code = f"import sys; sys.path[:] = {sys.path!r}\n"
        code += "from ai_edge_rms_norm.cli.main import main; main()"
        command = [sys.executable, "-c", code, "convert", source, "-o", self.output]
        return subprocess.run(
            [*map(str, command), *arguments], capture_output=True, text=True
        )

    def test_a_factory(self):
        result = self.run_convert(f"{self.source}:make", "--fuse-decomposed")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn(f"{self.output} written: 1 norms", result.stdout)
        (norm,) = arn.Model.load(self.output).rms_norm_ops()
        self.assertEqual((norm.encoding.value, norm.epsilon), ("custom", 1e-5))

    def test_other_sources_are_refused(self):
        for source, cause in (
            (f"{self.source}:wrong", "wrong must return (torch.nn.Module"),
            (f"{self.source}:missing", "it has no function 'missing'"),
            (str(self.folder), "Hugging Face checkpoints are not read"),
        ):
            with self.assertRaises(ValueError) as caught:
                sources.load_source(source)
            self.assertIn(cause, str(caught.exception))


class DoctorTest(absltest.TestCase):
    def test_a_crash_and_a_hang_are_findings(self):
        crash = diagnosis._try("part", "import os; os.abort()", "remedy", 60)
        self.assertEqual((crash.is_ok, crash.value), (False, "it ends with signal 6"))
        hang = diagnosis._try("part", "import time; time.sleep(60)", "remedy", 0.5)
        self.assertEqual((hang.is_ok, hang.remedy), (False, "remedy"))
        works = diagnosis._try("delegate", diagnosis._DELEGATE, "", 120)
        self.assertTrue(works.is_ok, works.value)


if __name__ == "__main__":
    absltest.main()
