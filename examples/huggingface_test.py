"""The Hugging Face example gives PyTorch's tokens; the notebook runs to its end."""

import contextlib
import io
import json
import pathlib
import sys
from unittest import mock

import numpy as np
import tokenizers
import transformers
from absl.testing import absltest

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.conversion.huggingface import load_checkpoint
from examples import generate, huggingface

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

    def test_text(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        model = huggingface.make_model()
        model.save_pretrained(folder)
        words = {f"w{i}": i for i in range(model.config.vocab_size)}
        words_only = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "w0"))
        words_only.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=words_only
        ).save_pretrained(folder)
        tflite = folder / "model.tflite"
        checkpoint = load_checkpoint(folder)
        checkpoint.convert(prefill_lengths=[4], cache_length=32).export(tflite)
        tokens, _ = huggingface.expected(model, [5, 7, 11], steps=6)
        arguments = [__file__, tflite, folder, "w5 w7 w11", "--steps=6", "--pytorch"]
        arguments += ["--against", tflite]
        with (
            mock.patch.object(sys, "argv", [*map(str, arguments)]),
            contextlib.redirect_stdout(io.StringIO()) as output,
        ):
            generate.main()
        text, _, other, verdict = output.getvalue().splitlines()
        self.assertIn("6 of 6 tokens are the same, logits differ by 0.0e+00", other)
        # A file that follows another's text says what it would have taken.
        forced = generate.greedy(arn.Model.load(tflite), [5, 7, 11], text=[1, 2])
        after = huggingface.expected(model, [5, 7, 11, 1, 2], steps=1)[0]
        self.assertEqual([t for t, _ in forced][:3:2], [tokens[0], *after])
        self.assertAlmostEqual(
            generate.divergence(np.log([1, 1]), np.log([1, 3])), np.log(4 / 3) / 2
        )
        self.assertEqual(text, " ".join(f"w{token}" for token in tokens))
        self.assertEqual(verdict, "the first 6 of 6 tokens are those of PyTorch")

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
