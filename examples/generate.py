"""Generates text with a file that `ai-edge-rms-norm convert CHECKPOINT` wrote.

    python examples/generate.py model.tflite CHECKPOINT "What is the capital of France?"

CHECKPOINT is the folder that was converted, with its tokenizer. --pytorch compares the
tokens with PyTorch's; --against OTHER.tflite gives that file the same text and compares
the logits. Needs transformers and the wheel with [torch].
"""

import argparse
import itertools
import pathlib
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import transformers

import ai_edge_rms_norm as arn

__all__ = ["divergence", "greedy", "main"]

_PREFILL = "prefill_"


def greedy(
    model: arn.Model,
    prompt: Sequence[int],
    threads: int = 1,
    text: Sequence[int] = (),
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the next tokens, the most likely ones, each with its logits.

    Ends where the cache is full.

    Args:
      model: The file, with the signatures decode and prefill_N for some N.
      prompt: The tokens before.
      threads: Their number.
      text: Tokens to go on with in the place of the most likely ones.
    """
    interpreter = model.interpreter(num_threads=threads)
    runners = {
        name: interpreter.get_signature_runner(name)
        for name in interpreter.get_signature_list()
    }
    details = runners["decode"].get_input_details()
    size = int(details["mask"]["shape"][-1])
    cache = {
        name: np.zeros(detail["shape"], detail["dtype"])
        for name, detail in details.items()
        if name.startswith("kv_cache_")
    }
    lengths = sorted(
        int(name.removeprefix(_PREFILL))
        for name in runners
        if name.startswith(_PREFILL)
    )

    def run(signature: str, tokens: Sequence[int], start: int, length: int) -> dict:
        # Tokens behind the last one are overwritten before they are visible.
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(tokens)] = tokens
        positions = np.arange(start, start + length, dtype=np.int32)
        hidden = np.arange(size) > positions[:, None]
        mask = np.where(hidden, np.float32(-1e9), np.float32(0))[None, None]
        return runners[signature](
            tokens=padded, input_pos=positions, mask=mask, **cache
        )

    start, last = 0, len(prompt) - 1
    while start < last:
        fitting = [n for n in lengths if start + n <= size]
        if not fitting:
            break
        # The shortest that takes all that is left, or else the longest.
        length = next((n for n in fitting if n >= last - start), fitting[-1])
        tokens = prompt[start : min(start + length, last)]
        cache = run(f"{_PREFILL}{length}", tokens, start, length)
        start += len(tokens)
    pending = [*prompt[start:], *text]
    for position in range(start, size):
        cache = run("decode", [pending.pop(0)], position, 1)
        logits = cache.pop("logits")[0, 0]
        if position >= last:
            token = int(logits.argmax())
            pending = pending or [token]
            yield token, logits


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Returns the Kullback-Leibler divergence of two rows of logits, in nats."""
    p, q = (x - x.max() for x in (p.astype(np.float64), q.astype(np.float64)))
    p, q = (x - np.log(np.exp(x).sum()) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum())


def main() -> None:
    """Prints the text, and the time of a token."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path, help="the .tflite")
    parser.add_argument("checkpoint", type=pathlib.Path, help="the folder")
    parser.add_argument("prompt")
    parser.add_argument("--steps", type=int, default=48, help="tokens to generate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pytorch", action="store_true", help="compare with PyTorch")
    parser.add_argument("--against", type=pathlib.Path, help="another .tflite")
    args = parser.parse_args()

    tokenizer = transformers.AutoTokenizer.from_pretrained(args.checkpoint)
    text = args.prompt
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            tokenize=False,
        )
    prompt = tokenizer(text, add_special_tokens=not tokenizer.chat_template).input_ids
    model = arn.Model.load(args.model)
    start, tokens, rows, seconds = time.perf_counter(), [], [], []
    for token, logits in itertools.islice(
        greedy(model, prompt, args.threads), args.steps
    ):
        tokens.append(token)
        rows.append(logits)
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        if token == tokenizer.eos_token_id:
            break
    print(tokenizer.decode(tokens))
    print(
        f"{len(prompt)} tokens of prompt and the first token {seconds[0]:.2f} s, then"
        f" {np.median(seconds[1:]) * 1e3:.1f} ms per token"
    )
    if args.against:
        other = greedy(arn.Model.load(args.against), prompt, args.threads, tokens)
        found = [*itertools.islice(other, len(tokens))]
        same = sum(a == b for a, (b, _) in zip(tokens, found, strict=True))
        pairs = [(row, theirs) for row, (_, theirs) in zip(rows, found, strict=True)]
        error = np.median([np.abs(a - b).max() / np.abs(a).max() for a, b in pairs])
        print(
            f"{args.against}, after the same text: {same} of {len(tokens)} tokens are"
            f" the same, logits differ by {error:.1e} of the largest (median),"
            f" divergence {np.mean([divergence(*pair) for pair in pairs]):.1e}"
        )
    if args.pytorch:
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            args.checkpoint, dtype=torch.float32
        )
        before = torch.tensor([prompt])
        after = reference.generate(
            before,
            attention_mask=torch.ones_like(before),
            do_sample=False,
            max_new_tokens=len(tokens),
        )
        both = zip(tokens, after[0, len(prompt) :].tolist(), strict=False)
        count = len([*itertools.takewhile(lambda pair: pair[0] == pair[1], both)])
        print(f"the first {count} of {len(tokens)} tokens are those of PyTorch")


if __name__ == "__main__":
    main()
