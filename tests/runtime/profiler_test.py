"""LiteRT's profiler: which operators it finds, and which of them are norms."""

import pathlib
from unittest import mock

import torch
from absl.testing import absltest

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.runtime import profiler
from ai_edge_rms_norm.tflite import flatbuffer


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 64)
        self.norm, self.linear = arn.RMSNorm(64), torch.nn.Linear(64, 64)

    def forward(self, tokens, x):
        return self.norm(self.linear(self.norm(self.table(tokens))) + x)


class ProfilerTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        inputs = (torch.zeros(1, 9).int(), torch.ones(1, 9, 64))
        self.model = arn.convert(Block().eval(), inputs, encoding="custom")

    def profile(self, model, **options) -> profiler.Profile:
        path = self.folder / "model.tflite"
        model.export(path)
        (profile,) = profiler.profile_model(path, seconds=0.01, **options).values()
        counts = {kind.kind: kind.count for kind in profile.kinds}
        self.assertEqual(counts["EMBEDDING_LOOKUP"], 1)
        self.assertTrue(any("Fully Connected" in kind for kind in counts), counts)
        return profile

    def test_norms_on_the_kernels(self):
        for encoding in ("custom", "stablehlo_custom_call", "composite", "decomposed"):
            profile = self.profile(self.model.translate(encoding), threads=2)
            (norms,) = (kind for kind in profile.kinds if kind.is_norm)
            self.assertEqual((norms.kind, norms.count), ("AiEdgeRmsNorm", 2), encoding)
            self.assertEqual(profile.norms, norms.seconds)
            self.assertEqual(profile.norms_by, "profiler")

    def test_norms_in_the_plain_form(self):
        plain = self.model.translate("decomposed", range_safe=False)
        profile = self.profile(plain)
        self.assertFalse(any(kind.is_norm for kind in profile.kinds))
        self.assertStartsWith(profile.norms_by, "difference of ")
        profile = self.profile(plain, fuse_decomposed=True)
        self.assertEqual(sum(k.count for k in profile.kinds if k.is_norm), 2)
        self.assertEqual(profile.norms_by, "profiler")

    def test_the_difference(self):
        def samples(seconds, counts, kinds) -> mock.Mock:
            norms = [0.0] * len(seconds)
            return mock.Mock(seconds=seconds, counts=counts, kinds=kinds, norms=norms)

        counts = {"Mean": 2, "Multiply": 3, "GEMM": 1}
        kinds = {"Mean": [2e-6] * 3, "Multiply": [3e-6] * 3, "GEMM": [1.0, 2.0, 3.0]}
        fused_kinds = {"Multiply": [1e-6] * 3, "GEMM": [4.0, 5.0, 6.0]}
        fused = samples([1.0] * 3, {"Multiply": 1, "GEMM": 1}, fused_kinds)
        steady = samples([1 + 5e-6] * 3, counts, kinds)
        values, name = profiler._difference(steady, fused)
        self.assertEqual(name, "difference of calls")
        self.assertAlmostEqual(values[0], 5e-6)
        noisy = samples([1.0, 2.0, 3.0], counts, kinds)
        values, name = profiler._difference(noisy, fused)
        self.assertEqual(name, "difference of kinds")
        for value in values:
            self.assertAlmostEqual(value, 4e-6)

    def test_open_sizes_without_a_signature(self):
        module = arn.RMSNorm(64).eval()
        dynamic = ({0: torch.export.Dim("rows")},)
        model = arn.convert(module, (torch.ones(3, 64),), dynamic_shapes=dynamic)
        path = self.folder / "rows.tflite"
        tree = flatbuffer.read(model.translate("custom").model_content())
        tree.signatureDefs = None
        flatbuffer.write_file(path, tree)
        ((name, profile),) = profiler.profile_model(path, seconds=0.01).items()
        self.assertEqual(name, "subgraph 0")
        self.assertEqual([kind.count for kind in profile.kinds], [1])

    def test_other_versions_are_refused(self):
        with (
            mock.patch.object(
                profiler.importlib.metadata, "version", return_value="2.9.0"
            ),
            self.assertRaisesRegex(RuntimeError, "needs ai-edge-litert 2.3"),
        ):
            self.profile(self.model)


if __name__ == "__main__":
    absltest.main()
