"""What the converter writes, field by field; also a command-line check.

python test_tflite_conversion.py --output /tmp/norm.tflite --hidden 2048 --keep
"""

import os
import pathlib
import tempfile

import torch
from absl import flags
from absl.testing import absltest
from ai_edge_litert import schema_py_generated as schema

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.tflite import encoding, flatbuffer

_OUTPUT = flags.DEFINE_string("output", None, "Where to write the .tflite.")
_HIDDEN = flags.DEFINE_integer("hidden", 640, "Hidden size.", lower_bound=1)
_EPSILON = flags.DEFINE_float("epsilon", 1e-6, "Epsilon.")
_ENCODING = flags.DEFINE_enum(
    "encoding",
    "stablehlo_custom_call",
    [e.value for e in encoding.Encoding],
    "Encoding of the operator.",
)
_KEEP = flags.DEFINE_bool("keep", False, "Keep the .tflite after the test.")

_OP = schema.BuiltinOperator


class TfliteConversionTest(absltest.TestCase):
    def test_command_line(self):
        output = _OUTPUT.value or os.path.join(tempfile.mkdtemp(), "rms_norm.tflite")
        module = arn.RMSNorm(_HIDDEN.value, eps=_EPSILON.value).eval()
        x = torch.randn(3, _HIDDEN.value, generator=torch.Generator().manual_seed(0))
        arn.convert(module, (x,), encoding=_ENCODING.value).export(output)

        model = flatbuffer.load(output)
        (node,) = arn.find_ops(model)
        operator = model.subgraphs[0].operators[node.operator]
        op_code = model.operatorCodes[operator.opcodeIndex].builtinCode
        options = operator.builtinOptions2
        checked = {"encoding": node.encoding.value, "op code": op_code}
        self.assertEqual(node.encoding.value, _ENCODING.value)
        if node.encoding == encoding.Encoding.STABLEHLO_CUSTOM_CALL:
            checked |= {
                "call_target_name": options.callTargetName.decode(),
                "api_version": options.apiVersion,
                "has_side_effect": options.hasSideEffect,
                "backend_config": options.backendConfig.decode(),
            }
            self.assertEqual(op_code, 173)
            self.assertEqual(checked["call_target_name"], "ai_edge_torch.rms_norm")
            self.assertEqual(checked["api_version"], 1)
            self.assertIs(checked["has_side_effect"], False)
        checked["epsilon"] = node.epsilon
        self.assertEqual(node.epsilon, _EPSILON.value)

        y = arn.Model.load(output)(x.numpy())
        difference = (torch.from_numpy(y) - module(x)).abs().max().item()
        checked["max abs difference from PyTorch"] = difference
        self.assertLess(difference, 1e-5)
        for name, value in checked.items():
            print(f"{name}: {value}")
        print(f"{output}: {os.path.getsize(output)} bytes")
        if not _KEEP.value:
            os.unlink(output)

    def test_epsilon_round_trips_exactly(self):
        for epsilon in (1e-6, 1e-5, 0.1, 1.1920928955078125e-07, 5e-324, 1e300):
            module = arn.RMSNorm(8, eps=epsilon).eval()
            model = arn.convert(module, (torch.ones(2, 8),))
            for name in encoding.Encoding:
                if name in ("composite", "decomposed") and epsilon in (5e-324, 1e300):
                    with self.assertRaisesRegex(ValueError, "is not a finite float32"):
                        model.translate(name)
                    continue
                (node,) = model.translate(name).rms_norm_ops()
                self.assertEqual(node.epsilon, epsilon)

    def test_sizes_and_operators(self):
        module = arn.RMSNorm(64, elementwise_affine=False).eval()
        for name, expected in (
            ("stablehlo_custom_call", [_OP.STABLEHLO_CUSTOM_CALL]),
            ("custom", [_OP.CUSTOM]),
        ):
            content = bytes(arn.convert(module, (torch.ones(2, 64),), encoding=name))
            codes = flatbuffer.read(content).operatorCodes
            self.assertEqual([code.builtinCode for code in codes], expected)
            self.assertLess(len(content), 4096)

    def test_signatures_and_names(self):
        class Scaled(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = arn.RMSNorm(16)

            def forward(self, x, scale):
                return {"y": self.norm(x) * scale}

        module = Scaled().eval()
        inputs = {"x": torch.ones(4, 16), "scale": torch.ones(16)}
        model = (
            arn.signature("prefill", module, kwargs=inputs)
            .signature("decode", module, kwargs={**inputs, "x": torch.ones(1, 16)})
            .convert()
        )
        self.assertLen(model.rms_norm_ops(), 2)
        self.assertEqual({node.subgraph for node in model.rms_norm_ops()}, {0, 1})
        for name, rows in (("prefill", 4), ("decode", 1)):
            x = torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows))
            scale = torch.arange(16.0)
            result = model(x=x.numpy(), scale=scale.numpy(), signature_name=name)
            torch.testing.assert_close(
                torch.from_numpy(result["y"]), module(x, scale)["y"].detach()
            )
        with self.assertRaisesRegex(ValueError, r"\['decode', 'prefill'\]"):
            model(x, scale, signature_name="train")
        with self.assertRaisesRegex(ValueError, r"takes \['scale', 'x'\]"):
            model(x=x.numpy(), signature_name="decode")

    def test_rejects_bad_arguments(self):
        module, x = arn.RMSNorm(8), torch.ones(2, 8)
        with self.assertRaisesRegex(ValueError, "'stablehlo_custom_call'.*'onnx'"):
            arn.convert(module, (x,), encoding="onnx")
        with self.assertRaisesRegex(TypeError, r"write \(x,\)"):
            arn.convert(module, x)
        with self.assertRaisesRegex(TypeError, "torch.nn.Module, got function"):
            arn.convert(lambda x: x, (x,))

    def test_export_is_all_or_nothing(self):
        model = arn.convert(arn.RMSNorm(8).eval(), (torch.ones(2, 8),))
        folder = pathlib.Path(self.create_tempdir().full_path)
        model.export(folder / "new" / "model.tflite")
        self.assertEqual(
            (folder / "new" / "model.tflite").read_bytes(), model.model_content()
        )
        (folder / "taken").mkdir()
        with self.assertRaises(OSError):
            model.export(folder / "taken")  # A folder cannot be replaced by a file.
        self.assertEqual(sorted(p.name for p in folder.iterdir()), ["new", "taken"])


if __name__ == "__main__":
    absltest.main()
