"""The way `direct` through a TensorFlow that exports custom calls.

The interposed exporter stands in for the patch. Without it, TensorFlow fails: see
`test_stock_tensorflow_rejects_custom_calls` in tests/tensorflow_backend/tensorflow_backend_test.py.
"""

# First: it has to be loaded before TensorFlow.
from third_party.tensorflow import interposed_exporter  # noqa: F401

# isort: split
import importlib
import subprocess
import sys
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from ai_edge_rms_norm.conversion import converter, tensorflow_backend
from ai_edge_rms_norm.conversion.torch_frontend import FRONT_END, Signature
from ai_edge_rms_norm.ops import nn
from ai_edge_rms_norm.tflite import encoding, flatbuffer, op_options


class _Block(torch.nn.Module):
    """Both operators, with and without weight, among TFLite operators."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 16, bias=False)
        self.norm = nn.RMSNorm(16, eps=1.2345e-5)
        self.scaleless_norm = nn.RMSNorm(16, elementwise_affine=False)

    def forward(self, x):
        total, y = self.norm(self.linear(x), residual=x)
        return self.scaleless_norm(y) + total


def _signature() -> Signature:
    torch.manual_seed(0)
    return Signature("serving_default", _Block().eval(), (torch.randn(3, 16),))


def _convert(way: str, signature: Signature | None = None) -> schema.ModelT:
    custom_calls = tensorflow_backend.CustomCalls(way)
    model, _ = tensorflow_backend.convert([signature or _signature()], custom_calls)
    return model


def _custom_call_options(model: schema.ModelT) -> list[dict]:
    options = []
    for operator in model.subgraphs[0].operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if code.builtinCode == schema.BuiltinOperator.STABLEHLO_CUSTOM_CALL:
            fields = dict(vars(operator.builtinOptions2))
            fields["customAttributes"] = bytes(bytearray(fields["customAttributes"]))
            options.append(fields)
    return options


class InterposedExporterTest(parameterized.TestCase):
    def test_exports_all_fields(self):
        expected = {
            "hasSideEffect": False,
            "apiVersion": 1,
            "calledComputations": None,
            "customAttributes": bytes(flexbuffers.Dumps({"has_side_effect": False})),
        }
        add_norm, norm = _custom_call_options(_convert("direct"))
        self.assertEqual(
            add_norm,
            expected
            | {
                "callTargetName": op_options.ADD_RMS_NORM.encode(),
                "backendConfig": b'{"epsilon": 1.2345e-05}',
            },
        )
        self.assertEqual(
            norm,
            expected
            | {
                "callTargetName": op_options.RMS_NORM.encode(),
                "backendConfig": b'{"epsilon": 1e-06}',
            },
        )

    def test_both_ways_give_the_same_file(self):
        direct, tfl_custom = _convert("direct"), _convert("tfl.custom")
        self.assertEmpty(_custom_call_options(tfl_custom))
        encoding.translate_model(tfl_custom, encoding.Encoding.STABLEHLO_CUSTOM_CALL)
        self.assertEqual(flatbuffer.to_bytes(direct), flatbuffer.to_bytes(tfl_custom))

    @absltest.skipUnless(FRONT_END.converter, "litert-converter is not installed")
    def test_litert_converter_writes_the_same_options(self):
        s = _signature()
        content = bytes(converter.convert(s.module, s.args, backend="litert"))
        self.assertEqual(
            _custom_call_options(flatbuffer.read(content)),
            _custom_call_options(_convert("direct")),
        )

    def test_other_custom_calls(self):
        # Exported as they are, as litert-converter does.
        with mock.patch.object(op_options, "RMS_NORM", "vendor.norm"):
            options = _custom_call_options(_convert("direct"))
            self.assertEqual(options[1]["callTargetName"], b"vendor.norm")
            with self.assertRaisesRegex(ValueError, "custom call vendor.norm"):
                _convert("tfl.custom")

    @parameterized.parameters("direct", "tfl.custom")
    def test_composites_of_the_front_end_pass(self, way):
        # Their boundaries are custom calls until TensorFlow consumes them.
        normalization = importlib.import_module(
            f"{FRONT_END.module}.generative.layers.normalization"
        )
        module = torch.nn.Sequential(
            # Not an RMSNorm alone, so that it stays a composite.
            normalization.RMSNorm(
                16, with_scale=True, scale_shift=3.0, enable_hlfb=True
            ),
            nn.RMSNorm(16),
        )
        model = _convert(way, Signature("main", module.eval(), (torch.ones(3, 16),)))
        self.assertContainsSubset(
            {
                schema.BuiltinOperator.STABLEHLO_COMPOSITE,
                schema.BuiltinOperator.STABLEHLO_CUSTOM_CALL
                if way == "direct"
                else schema.BuiltinOperator.CUSTOM,
            },
            {code.builtinCode for code in model.operatorCodes},
        )

    def test_comes_too_late(self):
        script = (
            "import sys; sys.modules['tensorflow'] = None\n"
            "from third_party.tensorflow import interposed_exporter"
        )
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True
        )
        self.assertIn("TensorFlow is imported", result.stderr)


if __name__ == "__main__":
    absltest.main()
