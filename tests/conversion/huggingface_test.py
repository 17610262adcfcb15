"""Checkpoints of Transformers: the file gives PyTorch's tokens, errors are plain."""

import pathlib
import warnings

import numpy as np
import torch
import transformers
from absl.testing import absltest, parameterized

from ai_edge_rms_norm.conversion import huggingface
from examples import generate

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "vocab_size": 128,
    "pad_token_id": 0,
}
_CONFIGS = {
    "llama": transformers.LlamaConfig(**_SIZES),
    "gemma3": transformers.Gemma3TextConfig(**_SIZES, sliding_window=6),
}
_PREFILL, _CACHE = 8, 22


class HuggingFaceTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    @parameterized.parameters("llama", "gemma3")
    def test_tokens_are_those_of_pytorch(self, name):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(_CONFIGS[name]).eval()
        for parameter in model.parameters():  # So that the tokens differ.
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(self.folder)
        # Longer than a prefill; the last one in it would not fit into the cache.
        prompt = [int(t) for t in np.random.default_rng(0).integers(3, 128, 19)]
        steps = _CACHE - len(prompt) + 1
        tokens = list(prompt)
        for _ in range(steps):
            with torch.no_grad():
                logits = model(torch.tensor([tokens])).logits
            tokens.append(int(logits[0, -1].argmax()))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            checkpoint = huggingface.load_checkpoint(self.folder)
        self.assertTrue(checkpoint.has_weights)
        self.assertEmpty(checkpoint.report.skipped)
        tflite = checkpoint.convert(
            prefill_lengths=[_PREFILL], cache_length=_CACHE, encoding="custom"
        )
        found = [token for token, _ in generate.greedy(tflite, prompt)]
        self.assertEqual(found, tokens[len(prompt) :])
        # Prefill has no use for the norms behind the last entries of the cache.
        norms = len(checkpoint.report.replaced)
        self.assertBetween(len(tflite.rms_norm_ops()), 1.5 * norms, 2 * norms)

    def test_a_config_alone_gives_random_weights(self):
        _CONFIGS["llama"].save_pretrained(self.folder)
        for path in (self.folder, self.folder / "config.json"):
            with self.assertWarnsRegex(UserWarning, "they are random"):
                checkpoint = huggingface.load_checkpoint(path)
            self.assertFalse(checkpoint.has_weights)
            self.assertLen(checkpoint.report.replaced, 5)

    def test_what_is_refused(self):
        with self.assertRaisesRegex(ValueError, "expected a folder with a config.json"):
            huggingface.load_checkpoint(self.folder)
        transformers.ViTConfig().save_pretrained(self.folder)
        with self.assertRaisesRegex(ValueError, "vit is not a causal language model"):
            huggingface.load_checkpoint(self.folder)
        transformers.Gemma3nConfig().save_pretrained(self.folder)
        with self.assertRaisesRegex(ValueError, "export it with litert_torch"):
            huggingface.load_checkpoint(self.folder)
        checkpoint = huggingface.Checkpoint(torch.nn.Identity(), None, True)
        with self.assertRaisesRegex(ValueError, "from 1 to 8"):
            checkpoint.convert(prefill_lengths=[9], cache_length=8)
        with self.assertRaisesRegex(ValueError, "the backend litert only"):
            checkpoint.convert(backend="tensorflow")

    def test_a_missing_package_is_named(self):
        with self.assertRaisesRegex(ModuleNotFoundError, "pip install no-such-package"):
            huggingface._import("no_such_package.module")


if __name__ == "__main__":
    absltest.main()
