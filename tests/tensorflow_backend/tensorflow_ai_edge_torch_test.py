"""The front end ai-edge-torch 0.7.1 with TensorFlow, as on ARM64 Linux."""

# First: ai-edge-torch imports TensorFlow.
from third_party.tensorflow import interposed_exporter  # noqa: F401

# isort: split
import inspect

import numpy as np
import torch
from absl.testing import absltest, parameterized

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.conversion import converter
from ai_edge_rms_norm.conversion.torch_frontend import FRONT_END, ai_edge_torch
from ai_edge_rms_norm.tflite import edit, flatbuffer
from demo import transformer


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class AiEdgeTorchTest(parameterized.TestCase):
    def test_is_the_front_end(self):
        self.assertEqual(FRONT_END.name, "ai-edge-torch 0.7.1")
        self.assertIsNone(FRONT_END.converter)
        self.assertEqual(
            converter._choose(converter.Backend.AUTO), converter.Backend.TENSORFLOW
        )

    @parameterized.product(
        encoding=[encoding.value for encoding in arn.Encoding],
        block=[
            ((4, 640), lambda: transformer.MlpBlock(arn.RMSNorm, 640, 1024)),
            (
                (1, 12, 256),
                lambda: transformer.DecoderLayer(arn.RMSNorm, 256, 512, 4, 1, 64),
            ),
        ],
    )
    def test_transformer_blocks(self, encoding, block):
        shape, make = block
        module = transformer.randomize(make())
        x = _random(*shape)
        expected = module(x).detach().numpy()
        actual = arn.convert(module, (x,), encoding=encoding)(x.numpy())
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)

    def test_dynamic_shapes_and_names(self):
        class Block(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = arn.RMSNorm(32)

            def forward(self, y, x):
                total, normalized = self.norm(y, x)
                return {"z": normalized, "a": total}

        module = Block().eval()
        rows = {0: torch.export.Dim("rows")}
        example = {"y": _random(2, 32), "x": _random(2, 32)}
        model = arn.convert(
            module, None, example, dynamic_shapes={"y": rows, "x": rows}
        )
        inputs = {"y": _random(7, 32), "x": _random(7, 32) + 1}
        actual = model(**{name: x.numpy() for name, x in inputs.items()})
        for name, expected in module(**inputs).items():
            np.testing.assert_allclose(
                actual[name], expected.detach().numpy(), rtol=2e-6, atol=1e-6
            )

    def test_both_ways_give_the_same_file(self):
        norm, args = arn.RMSNorm(16).eval(), (_random(2, 16),)
        files = set()
        for way in ("direct", "tfl.custom"):
            model = flatbuffer.read(bytes(arn.convert(norm, args, custom_calls=way)))
            # It names the way.
            edit.set_metadata(model, converter.METADATA, b"")
            files.add(flatbuffer.to_bytes(model))
        self.assertLen(files, 1)

    def test_private_interfaces(self):
        for function, parameters in (
            (ai_edge_torch.conversion._run_convert_passes, "exported_program"),
            (ai_edge_torch.common_utils.flat_dict_names, "tree_spec context"),
            (
                ai_edge_torch.export.exported_program_to_mlir,
                "exported_program ir_context _pre_lower_pass",
            ),
            (
                ai_edge_torch.fx_infra.safe_run_decompositions,
                "exported_program decomp_table",
            ),
        ):
            with self.subTest(function.__name__):
                self.assertEqual(
                    " ".join(inspect.signature(function).parameters), parameters
                )


if __name__ == "__main__":
    absltest.main()
