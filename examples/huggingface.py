"""A Hugging Face model end to end: replace, convert, quantize, run and compare.

    python examples/huggingface.py --output qwen3.tflite

The model is a Qwen3 with random weights, so that nothing is downloaded; another one is
`transformers.AutoModelForCausalLM.from_pretrained(...)`. Needs transformers,
ai-edge-quantizer and the wheel with [convert].
"""

import argparse
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import transformers
from ai_edge_quantizer import quantizer, recipe

import ai_edge_rms_norm as arn

__all__ = [
    "CACHE",
    "PREFILL",
    "StepModule",
    "convert",
    "empty_cache",
    "expected",
    "greedy",
    "make_model",
    "quantize",
]

PREFILL = 16  # tokens per call of the signature prefill
CACHE = 64  # tokens that the KV cache holds


def make_model() -> transformers.PreTrainedModel:
    """Returns a Qwen3 of two layers with random weights."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_hidden_layers=2,
        vocab_size=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    model = transformers.Qwen3ForCausalLM(config).eval()
    # A random embedding that is the head as well repeats the last token.
    model.lm_head.weight = torch.nn.Parameter(0.5 * torch.randn(512, 64))
    return model


class _Cache(transformers.Cache):
    """A KV cache of fixed size that is written at given positions.

    Args:
      keys: For each layer [1, heads, CACHE, head size].
      values: The same for the values.
      positions: [tokens], where the new entries go.
    """

    def __init__(
        self,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        positions: torch.Tensor,
    ):
        super().__init__(layers=[])
        self.keys = list(keys)
        self.values = list(values)
        # Row t of it says which of the new entries goes to position t.
        self._where = (torch.arange(CACHE)[:, None] == positions).float()

    def _write(self, cache: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        kept = 1 - self._where.sum(1, keepdim=True)
        return cache * kept + self._where @ new

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the entries of a layer; returns all of them."""
        self.keys[layer_idx] = self._write(self.keys[layer_idx], key_states)
        self.values[layer_idx] = self._write(self.values[layer_idx], value_states)
        return self.keys[layer_idx], self.values[layer_idx]


class StepModule(torch.nn.Module):
    """One step of a decoder: tokens and a KV cache to logits and the cache after it."""

    def __init__(self, model: transformers.PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Runs the model.

        Args:
          tokens: int32 of shape [1, tokens].
          positions: int32 of shape [tokens]; the first free entries of the cache.
          keys: float32 of shape [layers, heads, CACHE, head size].
          values: The same.

        Returns:
          logits of shape [1, tokens, vocabulary], and keys and values as above.
        """
        cache = _Cache(keys.split(1), values.split(1), positions)
        visible = torch.arange(CACHE) <= positions[:, None]
        mask = torch.where(visible, 0.0, -1e4)[None, None]
        logits = self.model(
            input_ids=tokens,
            position_ids=positions[None],
            attention_mask=mask,
            past_key_values=cache,
        ).logits
        return {
            "logits": logits,
            "keys": torch.cat(cache.keys),
            "values": torch.cat(cache.values),
        }


def empty_cache(model: transformers.PreTrainedModel) -> torch.Tensor:
    """Returns zeros of shape [layers, heads, CACHE, head size]."""
    c = model.config
    return torch.zeros(c.num_hidden_layers, c.num_key_value_heads, CACHE, c.head_dim)


def convert(model: transformers.PreTrainedModel, encoding: str = "custom") -> arn.Model:
    """Returns the .tflite with the signatures prefill and decode."""
    step, cache = StepModule(model).eval(), empty_cache(model)
    converter = arn.Converter()
    for name, length in (("prefill", PREFILL), ("decode", 1)):
        inputs = {
            "tokens": torch.zeros(1, length, dtype=torch.int32),
            "positions": torch.arange(length, dtype=torch.int32),
            "keys": cache,
            # litert-torch 0.10 loses one of two inputs that are one tensor object.
            "values": cache.clone(),
        }
        converter.signature(name, step, kwargs=inputs)
    return converter.convert(encoding=encoding)


def quantize(model: arn.Model) -> arn.Model:
    """Returns the model with int8 weights; the norms stay float32."""
    quantize = quantizer.Quantizer(model.model_content())
    quantize.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    return arn.Model(bytes(quantize.quantize().quantized_model))


def greedy(
    model: arn.Model, cache: np.ndarray, prompt: Sequence[int], steps: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the next tokens, the most likely ones, each with its logits.

    Args:
      model: From `convert`.
      cache: From `empty_cache`.
      prompt: Up to PREFILL tokens.
      steps: Number of tokens to yield.
    """
    interpreter = model.interpreter(num_threads=2)
    prefill = interpreter.get_signature_runner("prefill")
    decode = interpreter.get_signature_runner("decode")
    padded = np.zeros((1, PREFILL), np.int32)
    padded[0, : len(prompt)] = prompt
    positions = np.arange(PREFILL, dtype=np.int32)
    # The entries behind the prompt are overwritten before they are visible.
    out = prefill(tokens=padded, positions=positions, keys=cache, values=cache)
    logits = out["logits"][0, len(prompt) - 1]
    for position in range(len(prompt), len(prompt) + steps):
        token = int(logits.argmax())
        yield token, logits
        out = decode(
            tokens=np.array([[token]], np.int32),
            positions=np.array([position], np.int32),
            keys=out["keys"],
            values=out["values"],
        )
        logits = out["logits"][0, 0]


def expected(
    model: transformers.PreTrainedModel, prompt: Sequence[int], steps: int
) -> tuple[list[int], np.ndarray]:
    """Returns PyTorch's next tokens, and the logits of the first."""
    tokens, first = list(prompt), None
    for _ in range(steps):
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, -1].numpy()
        first = logits if first is None else first
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :], first


def main() -> None:
    """Prints what each step gave."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, help="the .tflite to write")
    parser.add_argument("--encoding", default="custom", help="of the norms")
    args = parser.parse_args()

    model = make_model()
    prompt, steps = [5, 7, 11, 13], 16
    tokens, first = expected(model, prompt, steps)

    report = arn.replace_rms_norm(model)
    print(f"{len(report.replaced)} norms replaced, {len(report.skipped)} left")
    converted = convert(model, args.encoding)
    quantized = quantize(converted)
    cache = empty_cache(model).numpy()
    for name, tflite in (("float32", converted), ("int8 weights", quantized)):
        found = list(greedy(tflite, cache, prompt, steps))
        same = sum(a == b for a, (b, _) in zip(tokens, found, strict=True))
        error = np.abs(found[0][1] - first).max() / np.abs(first).max()
        print(
            f"{name}: {len(bytes(tflite))} bytes, {len(tflite.rms_norm_ops())} norms,"
            f" {same} of {steps} tokens are PyTorch's, error of the logits {error:.1e}"
        )
    if args.output:
        quantized.export(args.output)
        print(f"written: {args.output}")


if __name__ == "__main__":
    main()
