"""The same models through both backends: the same interface, the same results.

Without litert-converter, as on ARM64, there is nothing to compare with.
"""

import sys
from unittest import mock

import numpy as np
import tensorflow as tf
import torch
from absl.testing import absltest, parameterized

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.conversion import converter, tensorflow_backend
from ai_edge_rms_norm.conversion.torch_frontend import FRONT_END, interface
from ai_edge_rms_norm.tflite import flatbuffer
from demo import transformer

_BACKENDS = ("litert", "tensorflow")


def _random(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def _interface(model: arn.Model) -> dict:
    """Signatures with the name, dtype and dimensions of every input and output."""
    interpreter = model.interpreter()
    interface = {}
    for name, signature in interpreter.get_signature_list().items():
        runner = interpreter.get_signature_runner(name)
        assert sorted(runner.get_input_details()) == sorted(signature["inputs"])
        for kind, details in (
            ("inputs", runner.get_input_details()),
            ("outputs", runner.get_output_details()),
        ):
            for key, detail in details.items():
                interface[name, kind, key] = (
                    detail["name"],
                    detail["dtype"],
                    tuple(detail["shape_signature"]),
                )
    return interface


def _order(model: arn.Model) -> list:
    """Names of the inputs and outputs of every subgraph, in order."""
    return [
        [subgraph.tensors[i].name for i in (*subgraph.inputs, *subgraph.outputs)]
        for subgraph in flatbuffer.read(bytes(model)).subgraphs
    ]


class TensorFlowBackendTest(parameterized.TestCase):
    def _both(self, module, args, **options) -> list[arn.Model]:
        if not FRONT_END.converter:
            self.skipTest("litert-converter is not installed")
        models = [
            arn.convert(module, args, backend=backend, **options)
            for backend in _BACKENDS
        ]
        self.assertEqual(*map(_interface, models))
        self.assertEqual(*map(_order, models))
        self.assertEqual(
            *([n.call_target for n in model.rms_norm_ops()] for model in models)
        )
        return models

    def _assert_equal_results(self, models, *args):
        results = [model(*(x.numpy() for x in args)) for model in models]
        for litert, tensorflow in zip(
            *(r if isinstance(r, tuple) else (r,) for r in results), strict=True
        ):
            np.testing.assert_array_equal(litert, tensorflow)

    def test_decomposed_norms(self):
        x = _random(3, 64)
        module = torch.nn.Sequential(torch.nn.RMSNorm(64), torch.nn.Linear(64, 8))
        models = self._both(module.eval(), (x,), fuse_decomposed=True)
        self.assertEqual([len(model.rms_norm_ops()) for model in models], [1, 1])
        self._assert_equal_results(models, x)

    @parameterized.named_parameters(
        ("mlp", (4, 640), lambda: transformer.MlpBlock(arn.RMSNorm, 640, 1024)),
        (
            "decoder_layer",
            (1, 12, 256),
            lambda: transformer.DecoderLayer(arn.RMSNorm, 256, 512, 4, 1, 64),
        ),
    )
    def test_transformer_blocks(self, shape, make):
        module = transformer.randomize(make())
        x = _random(*shape)
        for encoding in arn.Encoding:
            models = self._both(module, (x,), encoding=encoding)
            self._assert_equal_results(models, x)

    def test_dynamic_shapes(self):
        class Block(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = arn.RMSNorm(32)

            def forward(self, x, residual):
                total, y = self.norm(x, residual)
                return total + y, y

        dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("rows")}
        args = _random(2, 3, 32), _random(2, 3, 32, seed=1)
        models = self._both(Block().eval(), args, dynamic_shapes=(dims, dims))
        self._assert_equal_results(
            models, _random(1, 7, 32, seed=2), _random(1, 7, 32, seed=3)
        )

    @parameterized.parameters(torch.float16, torch.bfloat16)
    def test_half_precision(self, dtype):
        class Block(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = arn.RMSNorm(32)

            def forward(self, x):
                return self.norm(x.to(dtype)).float()

        # NumPy has no bfloat16, so that one goes in and out as float32.
        x = _random(3, 32).to(torch.float16 if dtype == torch.float16 else None)
        self._assert_equal_results(self._both(Block().eval(), (x,)), x)

    @parameterized.parameters(
        (torch.int64, torch.int32), (torch.float64, torch.float32)
    )
    def test_64_bit_inputs_and_outputs_are_narrowed(self, dtype, narrowed):
        class Block(torch.nn.Module):
            def forward(self, x):
                return arn.rms_norm(x.float()), x + x

        x = (_random(3, 32) * 8).to(dtype)
        models = self._both(Block(), (x,))
        self._assert_equal_results(models, x.to(narrowed))

    def test_dictionaries_and_keyword_arguments(self):
        class Block(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = arn.RMSNorm(16)

            # Neither inputs nor outputs are in alphabetical order.
            def forward(self, y, x):
                return {"z": self.norm(y), "a": y - x}

        kwargs = {"y": _random(2, 16), "x": _random(2, 16, seed=1)}
        models = self._both(Block().eval(), None, kwargs=kwargs)
        results = [m(**{k: v.numpy() for k, v in kwargs.items()}) for m in models]
        for name in ("z", "a"):
            np.testing.assert_array_equal(*(result[name] for result in results))

    def test_more_than_ten_outputs_stay_in_order(self):
        class Block(torch.nn.Module):
            def forward(self, x):
                return tuple(arn.rms_norm(x + i) for i in range(12))

        x = _random(2, 16)
        self._assert_equal_results(self._both(Block(), (x,)), x)

    def test_signatures_share_weights(self):
        block = transformer.randomize(transformer.MlpBlock(arn.RMSNorm, 128, 512))
        sizes = {}
        for names in (("decode",), ("decode", "prefill")):
            collected = converter.Converter()
            for rows, name in enumerate(names, start=1):
                collected.signature(name, block, (_random(rows, 128),))
            model = collected.convert(backend="tensorflow")
            sizes[names] = len(bytes(model))
            self.assertCountEqual(model.interpreter().get_signature_list(), names)
        weights = 4 * sum(p.numel() for p in block.parameters())
        one, two = sizes.values()
        self.assertLess(two - one, weights / 20)

    def test_metadata_and_log_say_what_converted(self):
        patterns = {"tensorflow": r"TensorFlow [\d.]+, custom calls: tfl.custom$"}
        if FRONT_END.converter:
            patterns["litert"] = r"litert-converter [\d.]+$"
        patterns["auto"] = patterns.get("litert", patterns["tensorflow"])
        for backend, pattern in patterns.items():
            with self.subTest(backend), self.assertLogs(level="INFO") as logs:
                model = arn.convert(
                    arn.RMSNorm(8).eval(), (_random(1, 8),), backend=backend
                )
            tree = flatbuffer.read(bytes(model))
            (entry,) = (
                m for m in tree.metadata if m.name.decode() == converter.METADATA
            )
            text = bytes(bytearray(tree.buffers[entry.buffer].data)).decode()
            self.assertRegex(text, f"^{FRONT_END.name}, {pattern}")
            chosen = converter._choose(converter.Backend(backend)).value
            self.assertIn(
                f"Converted with the backend {chosen}: {text}",
                [record.getMessage() for record in logs.records],
            )

    def test_choice(self):
        choose, backend = converter._choose, converter.Backend
        with mock.patch.object(FRONT_END, "converter", "litert-converter 0.5.0"):
            self.assertEqual(choose(backend.AUTO), backend.LITERT)
        with mock.patch.object(FRONT_END, "converter", None):
            self.assertEqual(choose(backend.AUTO), backend.TENSORFLOW)
        # A front end without litert-converter inherits this.
        with self.assertRaisesRegex(ImportError, f"installed is {FRONT_END.name}"):
            interface.FrontEnd.convert(FRONT_END, [])
        with self.assertRaisesRegex(ValueError, "'auto', 'litert', 'tensorflow', got"):
            backend("tf")

    def test_wrong_arguments(self):
        norm, args = arn.RMSNorm(8), (_random(1, 8),)
        for error, text, options in (
            (
                ValueError,
                "'tfl.custom', 'direct', got 'vhlo'",
                {"custom_calls": "vhlo"},
            ),
            (TypeError, "does not take quant_config", {"quant_config": None}),
        ):
            with self.assertRaisesRegex(error, text):
                arn.convert(norm, args, backend="tensorflow", **options)

    def test_without_tensorflow(self):
        with (
            mock.patch.dict(sys.modules, {"tensorflow": None}),
            self.assertRaisesRegex(ImportError, "TensorFlow, which is not installed"),
        ):
            arn.convert(arn.RMSNorm(8), (_random(1, 8),), backend="tensorflow")

    @parameterized.parameters("2.18.1", "2.19.1")
    def test_tensorflow_that_does_not_know_tfl_custom(self, version):
        x = _random(1, 8)
        with mock.patch.object(tf, "__version__", version):
            with self.assertRaisesRegex(
                RuntimeError, rf"TensorFlow {version} .* needed is TensorFlow 2\.20 or"
            ):
                arn.convert(arn.RMSNorm(8).eval(), (x,), backend="tensorflow")
            # Without a custom call there is nothing to know.
            model = arn.convert(torch.nn.ReLU().eval(), (x,), backend="tensorflow")
        np.testing.assert_array_equal(model(x.numpy()), x.relu().numpy())

    def test_stock_tensorflow_rejects_custom_calls(self):
        # When this fails, TensorFlow has changed, and the patch may go.
        with self.assertRaisesRegex(
            RuntimeError,
            "'vhlo.custom_call_v1' op is not part of the vhlo support yet.*needs a"
            " TensorFlow with patches/tensorflow applied",
        ):
            arn.convert(
                arn.RMSNorm(8).eval(),
                (_random(1, 8),),
                backend="tensorflow",
                custom_calls="direct",
            )

    def test_tensorflow_has_the_attributes_that_are_set(self):
        # Python would set an attribute of another name without a word.
        converter = tf.lite.TFLiteConverter.from_concrete_functions([])
        self.assertContainsSubset(
            tensorflow_backend._CONVERTER_ATTRIBUTES, dir(converter)
        )


if __name__ == "__main__":
    absltest.main()
