"""The command convert, and what doctor says of a part that fails."""

import pathlib

import numpy as np
import torch
import transformers
from absl.testing import absltest
from ai_edge_litert import schema_py_generated as schema

import ai_edge_rms_norm as arn
from ai_edge_rms_norm import diagnosis
from ai_edge_rms_norm.conversion import sources
from ai_edge_rms_norm.tflite import flatbuffer, inspection
from tests.cli.command import run

_FACTORY = """
import torch
def make():
    return torch.nn.RMSNorm(64, 1e-5).eval(), torch.ones(3, 64)
class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 64, bias=False)
        self.norm = torch.nn.RMSNorm(64, 1e-5)
    def forward(self, x, residual):
        total = self.linear(x) + residual
        return self.norm(total), total
def layer():
    return Layer().eval(), (torch.ones(3, 64), torch.ones(3, 64))
def wrong():
    return 1
def ends():
    raise SystemExit(3)
"""


class ConvertTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.source = self.folder / "model.py"
        self.source.write_text(_FACTORY)
        self.output = self.folder / "model.tflite"

    def convert(self, source, *arguments, output=None) -> tuple[int, str, str]:
        return run("convert", source, "-o", output or self.output, *arguments)

    def test_a_factory(self):
        code, text, log = self.convert(f"{self.source}:make", "--fuse-decomposed")
        self.assertEqual((code, log), (0, ""))
        self.assertIn(f"{self.output} written: 1 norms", text)
        (norm,) = arn.Model.load(self.output).rms_norm_ops()
        self.assertEqual((norm.encoding.value, norm.epsilon), ("custom", 1e-5))

    def test_replace_fuse_add_and_a_dynamic_size(self):
        source = f"{self.source}:layer"
        options = ("--replace", "--fuse-add", "--dynamic")
        code, text, log = self.convert(source, *options)
        self.assertEqual((code, log), (0, ""))
        self.assertIn("1 modules replaced", text)
        (norm,) = inspection.inspect(self.output).norms
        self.assertEqual(norm.call_target, "ai_edge_torch.add_rms_norm")
        self.assertEqual(norm.shape, (-1, 64))

    def test_quantize(self):
        source = f"{self.source}:layer"
        options = ("--encoding=decomposed", "--plain", "--quantize", "dynamic_int8")
        code, _, log = self.convert(source, *options)
        self.assertEqual((code, log), (0, ""))
        model = flatbuffer.load(self.output)
        types = {tensor.type for tensor in model.subgraphs[0].tensors}
        self.assertIn(schema.TensorType.INT8, types)
        (norm,) = inspection.inspect(self.output).norms
        self.assertEqual(norm.encoding, "plain")
        code, _, log = self.convert(source, "--quantize", "int7")
        self.assertEqual(code, 2)
        self.assertIn("--quantize must be one of dynamic_int8", log)

    def test_an_exported_program_keeps_its_open_size(self):
        path = self.folder / "model.pt2"
        module = torch.nn.RMSNorm(64, 1e-5).eval()
        program = torch.export.export(
            module,
            (torch.ones(3, 64),),
            dynamic_shapes=({0: torch.export.Dim("rows")},),
        )
        torch.export.save(program, path)
        code, text, log = self.convert(path, "--fuse-decomposed", output="-")
        self.assertEqual((code, log), (0, ""))
        model = arn.Model(text.encode(errors="surrogateescape"))
        x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
        y = model(x)
        np.testing.assert_allclose(y, module(torch.tensor(x)).detach(), 1e-5, 1e-6)
        code, _, log = self.convert(path, "--dynamic")
        self.assertEqual(code, 2)
        self.assertIn("--dynamic is for factories", log)

    def test_what_the_converter_raises_is_one_line(self):
        # litert-torch has no lowering of an open size for torch.nn.RMSNorm.
        code, _, log = self.convert(f"{self.source}:make", "--dynamic")
        self.assertEqual(code, 2)
        self.assertStartsWith(log, f"error: {self.source}:make: the conversion fails: ")
        self.assertLen(log.splitlines(), 1)
        self.assertNotIn("a bug of", log)
        self.assertFalse(self.output.exists())

    def test_a_checkpoint(self):
        checkpoint = self.folder / "config.json"
        config = transformers.LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_attention_heads=4,
            num_hidden_layers=1,
            vocab_size=32,
        )
        config.to_json_file(checkpoint)
        sizes = ("--prefill-lengths", "4,8", "--cache-length", 16)
        code, text, log = self.convert(checkpoint, *sizes)
        self.assertEqual(code, 0)
        self.assertEqual(
            log, f"warning: {checkpoint}: without weights; they are random\n"
        )
        self.assertStartsWith(text, "3 modules replaced\n")
        signatures = arn.Model.load(self.output).interpreter().get_signature_list()
        self.assertCountEqual(signatures, ["prefill_4", "prefill_8", "decode"])
        code, _, log = self.convert(checkpoint, "--dynamic")
        self.assertEqual(code, 2)
        self.assertIn("a checkpoint has the sizes of --prefill-lengths", log)

    def test_other_sources_are_refused(self):
        for source, cause in (
            (f"{self.source}:wrong", "wrong must return (torch.nn.Module"),
            (f"{self.source}:ends", "SystemExit: 3"),
            (f"{self.source}:missing", "it has no function 'missing'"),
            (str(self.folder), "checkpoint has no example inputs"),
            (str(self.source), ": expected FILE.py:FACTORY"),
            (str(self.folder / "llama"), "it does not exist; expected FILE.py:FACTORY"),
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
