"""Whole models: every norm is found, and greedy decoding gives the same tokens.

And the norms of all models of Transformers, one class for each body.
"""

import re

import numpy as np
import torch
from absl.testing import absltest, parameterized
from ai_edge_litert import interpreter as litert
from litert_torch.generative.layers import kv_cache

import ai_edge_rms_norm as arn
from testing import architectures, transformers_norms

_PROMPT = [3, 141, 59, 26, 5, 35, 89, 79]
_STEPS = 32
_CACHE = len(_PROMPT) + _STEPS


# Those that compute something else, with the reason.
_NO_NORMS = {
    ".*Gated": "its forward takes hidden_states, gate",
    "HYV4UnweightedRMSNorm": "its output has the shape .* 1]",
    "MuseSparkTextInputScaledRMSNorm": "something else besides an RMSNorm: .*mul",
    # Of models and blocks that have a norm, and of a norm behind a gate.
    "RobertaPreLayerNormSelf.*|AXK2GatedRMSNorm|Voxtral.*Ada.*": "needs config",
}


class CoverageTest(absltest.TestCase):
    def test_norms_of_transformers(self):
        norms = [norm for norm in transformers_norms.norm_classes() if norm.is_rms_norm]
        self.assertGreater(len(norms), 200)
        bodies = transformers_norms.bodies(norms)
        proven = 0
        for norm, *copies in bodies.values():
            outcome = transformers_norms.examine(norm)
            reasons = (r for n, r in _NO_NORMS.items() if re.fullmatch(n, norm.name))
            with self.subTest(norm.name):
                self.assertRegex(
                    outcome.detail, next(reasons, ", result (x|promoted|weight)$")
                )
            proven += (1 + len(copies)) * (outcome.status == "proven")
        self.assertEqual(proven, 188)


class ModelsTest(parameterized.TestCase):
    def _convert(self, architecture, module, **options) -> bytes:
        converter = arn.Converter()
        for name, inputs in architecture.signatures(module, len(_PROMPT), _CACHE):
            converter.signature(name, module, kwargs=inputs)
        return bytes(converter.convert(encoding="custom", **options))

    def _assert_norms(self, content: bytes, encoding: str, count: int) -> None:
        ops = arn.Model(content).rms_norm_ops()
        self.assertEqual([op.encoding.value for op in ops], count * [encoding])

    def _greedy(self, architecture, module, run):
        cache = {}
        if architecture.generative:
            tree = kv_cache.KVCache.from_model_config(_CACHE, module.config)
            for i, entry in enumerate(tree.caches):
                cache[f"kv_cache_k_{i}"] = entry.k_cache.numpy()
                cache[f"kv_cache_v_{i}"] = entry.v_cache.numpy()
        session = architectures.Session(architecture, run, cache, _CACHE)
        return session.greedy(_PROMPT, _STEPS)

    def _in_torch(self, architecture, module):
        def run(_, inputs):
            tensors = {k: torch.from_numpy(v) for k, v in inputs.items()}
            if not architecture.generative:
                return {"logits": module(**tensors).detach().numpy()}
            entries = tuple(
                kv_cache.KVCacheEntry(
                    tensors.pop(f"kv_cache_k_{i}"), tensors.pop(f"kv_cache_v_{i}")
                )
                for i in range(module.config.num_layers)
            )
            outputs = module(**tensors, kv_cache=kv_cache.KVCache(entries))
            result = {"logits": outputs["logits"].numpy()}
            for i, entry in enumerate(outputs["kv_cache"].caches):
                result[f"kv_cache_k_{i}"] = entry.k_cache.numpy()
                result[f"kv_cache_v_{i}"] = entry.v_cache.numpy()
            return result

        return self._greedy(architecture, module, run)

    def _in_tflite(self, architecture, module, content, fused=True):
        kind = arn.Interpreter if fused else litert.Interpreter
        interpreter = kind(model_content=content)
        runners = {
            name: interpreter.get_signature_runner(name)
            for name in interpreter.get_signature_list()
        }
        return self._greedy(
            architecture, module, lambda name, inputs: runners[name](**inputs)
        )

    @parameterized.named_parameters(
        (re.sub(r"\W", "_", a.name), a)
        for a in architectures.ARCHITECTURES
        # Made small, it is the 270M.
        if a.name != "litert-torch Gemma3 1B"
    )
    def test_all_norms_and_the_same_tokens(self, architecture):
        module = architecture.build(_CACHE, small=True)
        signatures = 2 if architecture.generative else 1
        norms = signatures * architecture.norms
        expected, logits = self._in_torch(architecture, module)
        self.assertGreater(len(set(expected)), 4)  # It does not say one thing only.

        original = self._convert(architecture, module)
        self._assert_norms(original, "decomposed", norms)
        fused, report = arn.fuse(original, encoding="custom")
        self.assertEmpty(report.skipped)
        self.assertLen(report.fused, norms)
        self.assertTrue(all(f.has_weight for f in report.fused))
        # Six or seven operators become one.
        self.assertLessEqual(
            report.operators_after, report.operators_before - 5 * norms
        )
        models = {"original": original, "fused": bytes(fused)}

        # The other ways, for one architecture of each kind: converting takes long.
        if "Gemma3" in architecture.name:
            graph = self._convert(architecture, module, fuse_decomposed=True)
            self._assert_norms(graph, "custom", norms)
            models["fuse_decomposed"] = graph
        if architecture.name == "litert-torch Gemma3 270M":
            exported = architecture.build(_CACHE, small=True, composites=True)
            composites = self._convert(architecture, exported)
            # convert() has made operators of the composites already.
            self._assert_norms(composites, "custom", norms)
            models["composites"] = composites

        replaced = arn.replace_rms_norm(module)
        self.assertEmpty(replaced.skipped)
        self.assertLen(replaced.replaced, architecture.norms)
        models["replaced"] = self._convert(architecture, module)
        self._assert_norms(models["replaced"], "custom", norms)

        for name, content in models.items():
            with self.subTest(name):
                tokens, first = self._in_tflite(
                    architecture, module, content, fused=name != "original"
                )
                self.assertEqual(tokens, expected)
                np.testing.assert_allclose(first, logits, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    absltest.main()
