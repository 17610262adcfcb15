"""The replaced exporter: when it works, when it does not, and what it changes."""

import importlib
import json
import os
import subprocess
import sys
import textwrap
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from ai_edge_rms_norm.conversion import (
    front_end,
    tensorflow_backend,
    tensorflow_vhlo_export,
)
from ai_edge_rms_norm.conversion.converter import convert, signature
from ai_edge_rms_norm.ops import nn

# Before TensorFlow is imported.
from ai_edge_rms_norm.tflite import flatbuffer, op_options

_STOCK_ERROR = "'vhlo.custom_call_v1' op is not part of the vhlo support yet"


class _Block(torch.nn.Module):
    """Both operators of ours, with and without weight, among TFLite operators."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 16, bias=False)
        self.norm = nn.RMSNorm(16, eps=1.2345e-5)
        self.scaleless_norm = nn.RMSNorm(16, elementwise_affine=False)

    def forward(self, x):
        total, y = self.norm(self.linear(x), residual=x)
        return self.scaleless_norm(y) + total


def _signature() -> front_end.Signature:
    torch.manual_seed(0)
    block = _Block().eval()
    return front_end.Signature(
        "serving_default", block, (torch.randn(3, 16),), {}, None
    )


def _convert(way: str | None = None) -> bytes:
    return tensorflow_backend.convert([_signature()], custom_calls=way)[0]


def _custom_call_options(content: bytes) -> list[dict]:
    model = flatbuffer.read(content)
    options = []
    for operator in model.subgraphs[0].operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if code.builtinCode == schema.BuiltinOperator.STABLEHLO_CUSTOM_CALL:
            fields = dict(vars(operator.builtinOptions2))
            fields["customAttributes"] = bytes(bytearray(fields["customAttributes"]))
            options.append(fields)
    return options


def _run(script: str) -> dict:
    """Runs a script in a process of its own, since imports cannot be undone.

    Returns:
      The JSON object in the last line of its output.
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise AssertionError(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


class VhloExportTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        reason = tensorflow_vhlo_export.load()
        if reason:
            raise AssertionError(reason)

    def test_stock_tensorflow_still_rejects_custom_calls(self):
        # The library is loaded, but no scope is open. When this fails, upstream has
        # changed, and the patch and this library may go.
        with self.assertRaisesRegex(RuntimeError, "cannot convert") as raised:
            _convert("direct")
        self.assertIn(_STOCK_ERROR, str(raised.exception.__cause__))

    def test_scope_exports_all_fields(self):
        expected = {
            "hasSideEffect": False,
            "apiVersion": 1,
            "calledComputations": None,
            "customAttributes": bytes(flexbuffers.Dumps({"has_side_effect": False})),
        }
        add_norm, norm = _custom_call_options(_convert("vhlo_export"))
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
        self.assertEqual(_convert("vhlo_export"), _convert("carrier"))

    def test_replaced_exporter_is_the_default(self):
        self.assertEqual(
            tensorflow_backend._choose_way(True),
            tensorflow_backend.CustomCalls.VHLO_EXPORT,
        )

    @absltest.skipUnless(front_end.CONVERTER, "litert-converter is not installed")
    def test_litert_converter_writes_the_same_options(self):
        s = _signature()
        model = convert(s.module, s.args, backend="litert")
        self.assertEqual(
            _custom_call_options(bytes(model)), _custom_call_options(_convert())
        )

    def test_foreign_custom_calls(self):
        # Exported as they are, as litert-converter does; the carrier has no room.
        with mock.patch.object(op_options, "RMS_NORM", "vendor.norm"):
            options = _custom_call_options(_convert("vhlo_export"))
            self.assertEqual(options[1]["callTargetName"], b"vendor.norm")
            with self.assertRaisesRegex(ValueError, "custom call vendor.norm"):
                _convert("carrier")

    @parameterized.parameters("vhlo_export", "carrier")
    def test_composites_of_the_front_end_pass(self, way):
        # Their boundaries are custom calls until TensorFlow consumes them.
        normalization = importlib.import_module(
            f"{front_end.MODULE}.generative.layers.normalization"
        )
        module = torch.nn.Sequential(
            # Not what we compute, so that it stays a composite.
            normalization.RMSNorm(
                16, with_scale=True, scale_shift=3.0, enable_hlfb=True
            ),
            nn.RMSNorm(16),
        )
        content, _ = tensorflow_backend.convert(
            [
                front_end.Signature(
                    "main", module.eval(), (torch.ones(3, 16),), {}, None
                )
            ],
            custom_calls=way,
        )
        codes = {code.builtinCode for code in flatbuffer.read(content).operatorCodes}
        self.assertContainsSubset(
            {
                schema.BuiltinOperator.STABLEHLO_COMPOSITE,
                schema.BuiltinOperator.STABLEHLO_CUSTOM_CALL,
            },
            codes,
        )

    def test_operators_that_only_the_scope_lets_through_are_an_error(self):
        model = schema.ModelT(
            operatorCodes=[
                schema.OperatorCodeT(builtinCode=schema.BuiltinOperator.STABLEHLO_CBRT)
            ]
        )
        with self.assertRaisesRegex(RuntimeError, "STABLEHLO_CBRT"):
            tensorflow_backend._check_operators(model)

    def test_scope_raises_when_tensorflow_does_not_export(self):
        with (
            self.assertRaisesRegex(RuntimeError, "did not call"),
            tensorflow_vhlo_export.scope(),
        ):
            pass

    @parameterized.parameters("2.17.1", "2.22.0", "3.0.0")
    def test_untested_version(self, version):
        with (
            mock.patch.object(tensorflow_vhlo_export, "_library", None),
            mock.patch.object(
                tensorflow_vhlo_export, "tensorflow_version", lambda: version
            ),
        ):
            self.assertRegex(tensorflow_vhlo_export.load(), rf"2\.21, not {version}")

    def test_neither_way_is_open(self):
        with (
            mock.patch.object(
                tensorflow_vhlo_export, "tensorflow_version", lambda: "2.19.1"
            ),
            mock.patch.object(tensorflow_vhlo_export, "load", lambda: "of this test"),
            self.assertRaisesRegex(
                RuntimeError,
                r"TensorFlow 2\.19\.1 .* carrier needs 2\.20 .* replaced: of this test",
            ),
        ):
            _convert()

    def test_tensorflow_imported_before(self):
        output = _run("""
            import json
            import tensorflow
            import torch
            import ai_edge_rms_norm as arn
            from ai_edge_rms_norm.tflite import flatbuffer
            from ai_edge_rms_norm.conversion import tensorflow_vhlo_export
            from ai_edge_rms_norm.conversion.converter import METADATA
            reason = tensorflow_vhlo_export.load()
            model = arn.convert(
                arn.RMSNorm(8).eval(), (torch.ones(2, 8),), backend="tensorflow"
            )
            tree = flatbuffer.read(bytes(model))
            entry, = (m for m in tree.metadata if m.name == METADATA.encode())
            converter = bytes(bytearray(tree.buffers[entry.buffer].data)).decode()
            encoding = model.rms_norm_ops()[0].encoding.value
            print(json.dumps(dict(reason=reason, by=converter, encoding=encoding)))
        """)
        self.assertRegex(output["reason"], "TensorFlow was imported before")
        self.assertEqual(output["encoding"], "stablehlo_custom_call")
        self.assertRegex(
            output["by"], r"TensorFlow 2\.\d+\.\d+, custom calls: carrier$"
        )

    def test_two_signatures_in_one_scope(self):
        x = torch.randn(2, 8)
        norm = nn.RMSNorm(8).eval()
        model = (
            signature("one", norm, (x,))
            .signature("two", norm, (x[:1],))
            .convert(backend="tensorflow", custom_calls="vhlo_export")
        )
        self.assertLen(model.rms_norm_ops(), 2)


if __name__ == "__main__":
    absltest.main()
