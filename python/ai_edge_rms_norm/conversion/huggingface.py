"""Converts a checkpoint of Hugging Face Transformers, with prefill, decode and cache.

checkpoint = load_checkpoint("gemma-3-270m")
model = checkpoint.convert(encoding="custom")
model.export("gemma.tflite")

The module, its KV cache and the signatures are litert-torch's, those of
`litert_torch.generative.export_hf`; here its norms are replaced first. That function
itself needs TensorFlow and a tokenizer; this does not.
"""

import contextlib
import dataclasses
import importlib
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ai_edge_rms_norm.conversion.converter import Backend, Converter
from ai_edge_rms_norm.ops.replace import ReplaceReport, replace_rms_norm
from ai_edge_rms_norm.runtime.model import Model

__all__ = ["Checkpoint", "is_checkpoint", "load_checkpoint"]

_CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_EXPORT = "litert_torch.generative.export_hf"
_ATTENTION = "lrt_transposed_attention"  # litert-torch registers it.
# litert-torch has modules of their own for them, which it imports with TensorFlow.
_OTHER_MODULES = ("gemma3n", "gemma4", "qwen3_5", "qwen3_5_text")


def is_checkpoint(source: str | os.PathLike[str]) -> bool:
    """Says whether a source is a folder or a .json, so to be read by this module."""
    return os.fspath(source).endswith(".json") or pathlib.Path(source).is_dir()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = (error.name or name).partition(".")[0].replace("_", "-")
        raise ModuleNotFoundError(
            f"a checkpoint needs {package}: pip install {package}", name=error.name
        ) from error


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A language model of Transformers whose norms are replaced.

    Attributes:
      module: The model, of float32.
      report: Which norms were replaced, and which were not and why.
      has_weights: Whether the weights are the checkpoint's; else they are random.
    """

    module: torch.nn.Module
    report: ReplaceReport
    has_weights: bool

    def convert(
        self,
        *,
        prefill_lengths: Sequence[int] = (128,),
        cache_length: int = 4096,
        **options: Any,
    ) -> Model:
        """Converts the model to a .tflite.

        For each length N there is a signature `prefill_N`, which only fills the cache;
        `decode` takes one token and gives its logits. Both take `tokens`, their
        positions `input_pos`, a `mask` that is 0 where a token sees an entry of the
        cache and very negative elsewhere, and the cache, `kv_cache_k_0` and so on,
        which they return.

        Args:
          prefill_lengths: Numbers of tokens of a prefill.
          cache_length: Number of tokens that the cache holds.
          **options: Of `Converter.convert`: encoding, fuse_add and so on.

        Raises:
          ImportError: A package is missing; the message names it.
          RuntimeError: The converter rejects the model.
          ValueError: A length is wrong, or the model cannot be converted this way.
        """
        if not prefill_lengths or any(
            not 0 < n <= cache_length for n in prefill_lengths
        ):
            raise ValueError(
                f"the lengths of prefills must be from 1 to {cache_length}, that of the"
                f" cache, got {list(prefill_lengths)}"
            )
        if Backend(options.get("backend", Backend.AUTO)) == Backend.TENSORFLOW:
            raise ValueError("a checkpoint is converted by the backend litert only")
        modules = _import(f"{_EXPORT}.core.exportable_module")
        patches = _import(f"{_EXPORT}.model_ext.patches")
        module: Any = self.module
        settings = modules.ExportableModuleConfig(
            model="",
            prefill_lengths=list(prefill_lengths),
            cache_length=cache_length,
            bundle_litert_lm=False,
        )
        converter = Converter()
        with (
            _attention(module),
            patches.patch_model(module, module.config.model_type, settings),
        ):
            for make in (
                modules.LiteRTExportableModuleForDecoderOnlyLMPrefill,
                modules.LiteRTExportableModuleForDecoderOnlyLMGenerate,
            ):
                part = make(module, settings).eval()
                for name, (inputs, _) in part.get_sample_inputs(module.config).items():
                    converter.signature(name, part, kwargs=inputs)
            return converter.convert(strict_export=False, **options)


@contextlib.contextmanager
def _attention(module: Any) -> Iterator[None]:
    """Gives a model the attention that writes litert-torch's cache."""
    before = module.config._attn_implementation  # noqa: SLF001  There is no other way.
    module.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        module.set_attn_implementation(before)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a language model from a disk, and replaces its norms.

    Args:
      path: Of a folder with config.json and the weights; or of a config.json alone, or
        a folder without weights, for the model with random weights. Nothing is
        downloaded, and no code in the folder is run.

    Raises:
      ImportError: A package is missing; the message names it.
      OSError: A file cannot be read.
      ValueError: It is not a causal language model that Transformers knows.
    """
    path = pathlib.Path(path)
    folder = path if path.is_dir() else path.parent
    if not (folder / _CONFIG if path.is_dir() else path).is_file():
        raise ValueError(f"{path}: expected a folder with a {_CONFIG}, or such a file")
    transformers = _import("transformers")
    auto, offline = transformers.AutoModelForCausalLM, {"local_files_only": True}
    config = transformers.AutoConfig.from_pretrained(path, **offline)
    if config.model_type in _OTHER_MODULES:
        raise ValueError(
            f"{path}: {config.model_type} is not converted here; export it with"
            f" {_EXPORT}, then run: ai-edge-rms-norm fuse"
        )
    if type(config) not in auto._model_mapping:  # noqa: SLF001
        raise ValueError(f"{path}: {config.model_type} is not a causal language model")
    has_weights = path.is_dir() and any(
        next(folder.glob(pattern), None) for pattern in _WEIGHTS
    )
    if has_weights:
        module = auto.from_pretrained(
            folder, config=config, dtype=torch.float32, **offline
        )
    else:
        # A file of random weights must not be taken for the model.
        warnings.warn(f"{path}: without weights; they are random", stacklevel=2)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            module = auto.from_config(config, dtype=torch.float32)
    module = module.eval()
    return Checkpoint(module, replace_rms_norm(module), has_weights)
