"""A tiny Qwen3 with random weights as a bundle of LiteRT-LM."""

import io
import pathlib
import random
import string
import zipfile

import litert_torch
import sentencepiece
import torch
from ai_edge_quantizer import quantizer, recipe
from litert_torch.generative.utilities import litertlm_builder

from testing import architectures

_CACHE = 64
_PROMPT = 16
_VOCABULARY = 512
_TOKENIZER = "tokenizer.model"
_METADATA = "llm_metadata_final.pb"  # The file that build_litertlm leaves.


def _tokenizer() -> bytes:
    """Returns a SentencePiece model trained on random words."""
    rng = random.Random(0)
    words = [
        "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 6)))
        for _ in range(300)
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(rng.choices(words, k=12)) for _ in range(500)),
        model_writer=model,
        vocab_size=_VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    return model.getvalue()


def model() -> tuple[bytes, int]:
    """Returns a Qwen3 of two layers with decomposed norms, and the number of norms.

    Its weights are int8, since the GPU accelerator looks up no float32 embeddings, and
    the attention mask is an input, as LiteRT-LM wants it on a GPU.
    """
    (architecture,) = (
        a for a in architectures.ARCHITECTURES if "Qwen3" in a.name and a.generative
    )
    module = architecture.build(_CACHE, small=True, composites=False)
    converter = litert_torch
    signatures = 0
    for name, inputs in architecture.signatures(module, _PROMPT, _CACHE):
        length = len(inputs["input_pos"])
        inputs["mask"] = torch.zeros(1, 1, length, _CACHE)
        name = f"prefill_{length}" if name == "prefill" else name
        converter = converter.signature(name, module, sample_kwargs=inputs)
        signatures += 1
    content = converter.convert().model_content()
    quantize = quantizer.Quantizer(content)
    quantize.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    return bytes(quantize.quantize().quantized_model), signatures * architecture.norms


def build(folder: pathlib.Path, name: str, content: bytes) -> pathlib.Path:
    """Writes a model as NAME.litertlm into a folder."""
    tokenizer = folder / _TOKENIZER
    if not tokenizer.exists():
        tokenizer.write_bytes(_tokenizer())
    (folder / f"{name}.tflite").write_bytes(content)
    litertlm_builder.build_litertlm(
        tflite_model_path=str(folder / f"{name}.tflite"),
        workdir=str(folder),
        output_path=str(folder),
        context_length=_CACHE,
        tokenizer_model_path=str(tokenizer),
        start_token_id=1,
        stop_token_ids=[2],
        llm_model_type="qwen3",
    )
    return folder / f"{name}.litertlm"


def as_task(path: pathlib.Path) -> pathlib.Path:
    """Writes the parts of a NAME.litertlm that `build` made as NAME.task beside it."""
    result = path.with_suffix(".task")
    with zipfile.ZipFile(result, "w") as archive:
        for name, part in (
            ("TF_LITE_PREFILL_DECODE", path.with_suffix(".tflite").name),
            ("TOKENIZER_MODEL", _TOKENIZER),
            ("METADATA", _METADATA),
        ):
            archive.write(path.with_name(part), name)
    return result
