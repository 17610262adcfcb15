"""The Hugging Face example gives PyTorch's tokens; the notebook runs to its end."""

import json
import pathlib
import sys

import numpy as np
from absl.testing import absltest

import ai_edge_rms_norm as arn
from examples import huggingface

_FOLDER = pathlib.Path(__file__).parent


class HuggingFaceTest(absltest.TestCase):
    def test_tokens_of_both_files(self):
        model = huggingface.make_model()
        prompt, steps = [5, 7, 11, 13], 16
        tokens, first = huggingface.expected(model, prompt, steps)
        self.assertLen(arn.replace_rms_norm(model).replaced, 9)
        tflite = huggingface.convert(model, "ml_drift")
        self.assertLen(tflite.rms_norm_ops(), 18)
        quantized = huggingface.quantize(tflite)
        self.assertLess(len(bytes(quantized)), 0.6 * len(bytes(tflite)))
        cache = huggingface.empty_cache(model).numpy()
        for content, tolerance in ((tflite, 1e-5), (quantized, 0.05)):
            found = list(huggingface.greedy(content, cache, prompt, steps))
            self.assertEqual([token for token, _ in found], tokens)
            error = np.abs(found[0][1] - first).max() / np.abs(first).max()
            self.assertLess(error, tolerance)

    def test_notebook(self):
        notebook = json.loads((_FOLDER / "huggingface.ipynb").read_text())
        sys.path.insert(0, str(_FOLDER))
        self.addCleanup(sys.path.remove, str(_FOLDER))
        namespace = {"__name__": "__main__"}
        cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
        self.assertNotEmpty(cells)
        for number, cell in enumerate(cells):
            self.assertEqual(cell["outputs"], [], "cleared, so that diffs stay small")
            code = "".join(cell["source"])
            exec(compile(code, f"cell {number}", "exec"), namespace)


if __name__ == "__main__":
    absltest.main()
