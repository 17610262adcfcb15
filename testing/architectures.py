"""Decoders of real architectures with random weights, for tests and benchmarks.

Those of `litert_torch.generative` have the signatures prefill and decode and a KV cache
that goes in and out; those of Hugging Face Transformers have one signature that
computes the logits of a window of tokens.
"""

import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator

import numpy as np
import torch
import transformers
from ai_edge_litert import schema_py_generated as schema


@contextlib.contextmanager
def _tensorflow_schema():
    """Stands in for TensorFlow while litert-torch's layers are imported.

    litert_torch.generative.layers.lora (0.10.0) takes the schema of .tflite files from
    TensorFlow, on which litert-torch does not depend; ai-edge-litert has the same file.
    """
    if importlib.util.find_spec("tensorflow"):
        yield
        return
    names = ("tensorflow", "tensorflow.lite", "tensorflow.lite.python")
    modules = {name: types.ModuleType(name) for name in names}
    modules[names[-1]].schema_py_generated = schema
    for name, module in modules.items():  # Others ask whether it is installed.
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


with _tensorflow_schema():
    from litert_torch.generative.examples.gemma3 import decoder as gemma3
    from litert_torch.generative.examples.llama import llama
    from litert_torch.generative.examples.qwen import qwen3
    from litert_torch.generative.examples.smollm import smollm
    from litert_torch.generative.layers import kv_cache, model_config, normalization

__all__ = ["ARCHITECTURES", "Architecture", "Session"]

_LAYERS = 2
# Few tokens: the product with the embedding would otherwise hide everything else.
_VOCABULARY = 512

# Runs a signature with inputs by name.
Run = Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A decoder of two layers.

    Attributes:
      name: Its name, with the size whose widths it has.
      norms: Number of RMSNorm modules.
      generative: Whether it is litert-torch's, with a KV cache.
      make: Makes the module; from small=True with a tenth of the widths.
    """

    name: str
    norms: int
    generative: bool
    make: Callable[[bool], torch.nn.Module]

    def build(
        self, cache: int, small: bool = False, composites: bool = False
    ) -> torch.nn.Module:
        """Returns the module in evaluation mode, with the same weights every time.

        Args:
          cache: Tokens of the KV cache, if there is one.
          small: Whether to make the widths small, for tests.
          composites: Whether litert-torch's norms are exported as `odml.rms_norm`, its
            default, or decomposed.
        """
        torch.manual_seed(0)
        module = self.make(small).eval()
        for name, parameter in module.named_parameters():
            if "norm" in name:  # Ones and zeros are folded away.
                parameter.data += 0.3 * torch.randn_like(parameter)
        for child in module.modules():
            if isinstance(child, normalization.RMSNorm):
                child.enable_hlfb = composites
        if self.generative:
            module.build_mask_cache(cache)
        # A random embedding that is the head as well repeats the last token.
        head = module.lm_head if self.generative else module.model.lm_head
        head.weight = torch.nn.Parameter(0.05 * torch.randn_like(head.weight))
        return module

    def signatures(
        self, module: torch.nn.Module, prompt: int, cache: int
    ) -> Iterator[tuple[str, dict[str, object]]]:
        """Yields the signatures with example inputs by name.

        Args:
          module: The result of `build`.
          prompt: Tokens of the prompt.
          cache: Tokens of the KV cache, or of the window.
        """
        if not self.generative:
            yield "window", {"tokens": torch.zeros(1, cache, dtype=torch.int32)}
            return
        caches = kv_cache.KVCache.from_model_config(cache, module.config)
        for name, length in (("prefill", prompt), ("decode", 1)):
            yield (
                name,
                {
                    "tokens": torch.zeros(1, length, dtype=torch.int32),
                    "input_pos": torch.arange(length, dtype=torch.int32),
                    "kv_cache": caches,
                },
            )


class Session:
    """Greedy decoding with whatever runs the signatures.

    Args:
      architecture: Whose signatures they are.
      run: Runs a signature on arrays by name, as a signature runner of LiteRT.
      cache: Arrays of the empty KV cache by name; for generative architectures.
      window: Tokens of the window; for others.
    """

    def __init__(
        self,
        architecture: Architecture,
        run: Run,
        cache: dict[str, np.ndarray],
        window: int,
    ):
        self._architecture = architecture
        self._run = run
        self._cache = cache
        self._window = window

    def greedy(self, prompt: list[int], steps: int) -> tuple[list[int], np.ndarray]:
        """Returns the tokens that follow a prompt, and the logits of the first."""
        tokens = list(prompt)
        first = None
        if not self._architecture.generative:
            for _ in range(steps):
                window = np.zeros((1, self._window), np.int32)
                window[0, : len(tokens)] = tokens
                (logits,) = self._run("window", {"tokens": window}).values()
                logits = logits[0, len(tokens) - 1]
                first = logits if first is None else first
                tokens.append(int(logits.argmax()))
            return tokens[len(prompt) :], first
        cache, name, position = self._cache, "prefill", 0
        pending = tokens
        for _ in range(steps):
            end = position + len(pending)
            outputs = self._run(
                name,
                {
                    "tokens": np.array([pending], np.int32),
                    "input_pos": np.arange(position, end, dtype=np.int32),
                    **cache,
                },
            )
            logits = outputs["logits"][0, -1]
            first = logits if first is None else first
            cache = {k: v for k, v in outputs.items() if k != "logits"}
            tokens.append(int(logits.argmax()))
            pending, name, position = tokens[-1:], "decode", end
        return tokens[len(prompt) :], first


def _generative(
    kind: type[torch.nn.Module], config: Callable[[], model_config.ModelConfig]
) -> Callable[[bool], torch.nn.Module]:
    def make(small: bool) -> torch.nn.Module:
        c = config()
        c.vocab_size, c.num_layers = _VOCABULARY, _LAYERS
        if isinstance(c.block_configs, list):
            c.block_configs = c.block_configs[:_LAYERS]
        if small:
            c.embedding_dim = 64
            for i in range(_LAYERS):
                attention = c.block_config(i).attn_config
                attention.head_dim = 16
                attention.num_heads //= attention.num_query_groups
                attention.num_query_groups = 1
                c.block_config(i).ff_config.intermediate_size = 96
            if c.embedding_scale is not None:
                c.embedding_scale = c.embedding_dim**0.5
        return kind(c)

    return make


class _Window(torch.nn.Module):
    """The logits of a Hugging Face model, without a cache."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits of shape [1, tokens, vocabulary]."""
        return self.model(input_ids=tokens, use_cache=False).logits


def _hugging_face(
    kind: type[transformers.PretrainedConfig], **widths
) -> Callable[[bool], torch.nn.Module]:
    def make(small: bool) -> torch.nn.Module:
        sizes = dict(
            hidden_size=64,
            intermediate_size=96,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
        )
        config = kind(
            **(sizes if small else widths),
            num_hidden_layers=_LAYERS,
            vocab_size=_VOCABULARY,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            attn_implementation="eager",
        )
        return _Window(transformers.AutoModelForCausalLM.from_config(config))

    return make


# Two norms per layer and one at the end; two more per layer for queries and keys, and
# in Gemma 3 two more behind attention and feed-forward.
ARCHITECTURES = (
    Architecture(
        "litert-torch Gemma3 270M",
        13,
        True,
        _generative(gemma3.Decoder, gemma3.get_decoder_config_270m),
    ),
    Architecture(
        "litert-torch Gemma3 1B",
        13,
        True,
        _generative(gemma3.Decoder, gemma3.get_decoder_config_1b),
    ),
    Architecture(
        "litert-torch SmolLM2 135M",
        5,
        True,
        _generative(smollm.SmolLM2, smollm.get_model_config_v2),
    ),
    Architecture(
        "litert-torch Qwen3 0.6B",
        9,
        True,
        _generative(qwen3.Qwen3, qwen3.get_0_6b_model_config),
    ),
    Architecture(
        "litert-torch Llama 3.2 1B",
        5,
        True,
        _generative(llama.Llama, llama.get_1b_model_config),
    ),
    Architecture(
        "Hugging Face Gemma3 270M",
        13,
        False,
        _hugging_face(
            transformers.Gemma3TextConfig,
            hidden_size=640,
            intermediate_size=2048,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
        ),
    ),
    Architecture(
        "Hugging Face Qwen3 0.6B",
        9,
        False,
        _hugging_face(
            transformers.Qwen3Config,
            hidden_size=1024,
            intermediate_size=3072,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
        ),
    ),
    Architecture(
        "Hugging Face Llama 3.2 1B",
        5,
        False,
        _hugging_face(
            transformers.LlamaConfig,
            hidden_size=2048,
            intermediate_size=8192,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
        ),
    ),
)
