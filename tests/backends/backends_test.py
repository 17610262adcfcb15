"""The table of runtimes: complete, in the documents, and right for what runs here."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from ai_edge_rms_norm import backends
from ai_edge_rms_norm.backends import Outcome
from ai_edge_rms_norm.runtime import interpreter as interpreter_lib
from ai_edge_rms_norm.tflite import encoding
from tests.backends import models, update_docs

_SHAPE = (2, 3, 64)
# Runs MODEL on x.npy with a stock interpreter or CompiledModel; a runtime may abort.
_RUN = """
import sys, numpy as np
model, x, kind, y = sys.argv[1:]
x = np.load(x)
if kind == "compiled_model_cpu":
    from ai_edge_litert.compiled_model import CompiledModel
    compiled = CompiledModel.from_file(model)
    inputs = compiled.create_input_buffers(0)
    outputs = compiled.create_output_buffers(0)
    inputs[0].write(x)
    compiled.run_by_index(0, inputs, outputs)
    np.save(y, outputs[0].read(x.size, np.float32).reshape(x.shape))
else:
    from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(model)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    np.save(y, interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
"""


class TableTest(absltest.TestCase):
    def test_it_has_every_encoding(self):
        values = {e.value for e in encoding.Encoding}
        self.assertEqual(set(backends.ENCODINGS), values | {backends.PLAIN})

    def test_the_documents_have_it(self):
        page = update_docs.PAGE.read_text()
        self.assertEqual(page, update_docs.updated(page), "run update_docs.py")

    def test_errors_name_what_there_is(self):
        with self.assertRaisesRegex(ValueError, "runtime must be one of .*'tflm'"):
            backends.support("custom", True, "tflm")
        with self.assertRaisesRegex(ValueError, "encoding must be one of .*'none'"):
            backends.support("none", True, "openvino")
        with self.assertRaisesRegex(ValueError, "purpose must be one of .*'tpu'"):
            backends.encoding_for("tpu")

    def test_the_encoding_for_a_purpose_runs_there(self):
        for purpose, runtime in (
            ("delegate", "interpreter_delegate"),
            ("delegate", "compiled_model_delegate"),
            ("gpu", "litert_gpu"),
            ("npu", "openvino"),
        ):
            chosen = backends.encoding_for(purpose)
            found = backends.support(chosen, True, runtime).outcome
            self.assertEqual(found, Outcome.FUSED, (purpose, runtime))
        for runtime in backends.RUNTIMES:
            chosen = backends.encoding_for("any")
            self.assertTrue(backends.support(chosen, True, runtime).outcome.is_right)

    def test_it_imports_the_standard_library_only(self):
        code = (
            "import json, sys; before = set(sys.modules);"
            "import ai_edge_rms_norm.backends;"
            "print(json.dumps(sorted(m.partition('.')[0] for m in sys.modules"
            " if m not in before)))"
        )
        process = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        )
        imported = set(json.loads(process.stdout))
        self.assertLessEqual(imported, sys.stdlib_module_names | {"ai_edge_rms_norm"})


class LiteRtTest(parameterized.TestCase):
    """Cells of LiteRT on the CPU, by the measured outcome."""

    @parameterized.product(
        encoding_name=backends.ENCODINGS,
        weight=(True, False),
        runtime=("interpreter", "compiled_model_cpu"),
    )
    def test_stock(self, encoding_name, weight, runtime):
        x = models.random_input(_SHAPE)
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            content = models.norm(encoding_name, _SHAPE, weight=weight)
            (folder / "model.tflite").write_bytes(content)
            np.save(folder / "x.npy", x)
            process = subprocess.run(
                [sys.executable, "-c", _RUN, folder / "model.tflite"]
                + [folder / "x.npy", runtime, folder / "y.npy"],
                capture_output=True,
                text=True,
            )
            expected = backends.support(encoding_name, weight, runtime).outcome
            if expected == Outcome.UNSUPPORTED:
                self.assertEqual(process.returncode, 1, process.stderr)
                return
            self.assertEqual(process.returncode, 0, process.stderr)
            y = np.load(folder / "y.npy")
        self.assertEqual(expected, Outcome.DECOMPOSED)
        self.assertLess(models.relative_error(y, models.reference(x, weight)), 1e-6)

    @parameterized.product(
        encoding_name=backends.ENCODINGS, weight=(True, False), fuse=(False, True)
    )
    def test_delegate(self, encoding_name, weight, fuse):
        content = models.norm(encoding_name, _SHAPE, weight=weight)
        interpreter = interpreter_lib.Interpreter(
            model_content=content, fuse_decomposed=fuse
        )
        interpreter.allocate_tensors()
        x = models.random_input(_SHAPE)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        y = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        self.assertLess(models.relative_error(y, models.reference(x, weight)), 1e-6)
        fused = interpreter_lib.Interpreter(
            model_content=models.norm("custom", _SHAPE, weight=weight)
        )
        fused.allocate_tensors()
        fused.set_tensor(fused.get_input_details()[0]["index"], x)
        fused.invoke()
        kernel = fused.get_tensor(fused.get_output_details()[0]["index"])
        found = backends.support(encoding_name, weight, "interpreter_delegate")
        is_fused = found.outcome == Outcome.FUSED or fuse
        if weight:  # Without a weight the decomposed result may have the same bits.
            self.assertEqual(np.array_equal(y, kernel), is_fused)


if __name__ == "__main__":
    absltest.main()
