"""The MLIR text that the operators are lowered to."""

import torch
from absl.testing import absltest, parameterized

import ai_edge_rms_norm.lowering  # noqa: F401  Registers the lowerings.
from ai_edge_rms_norm.conversion.torch_frontend import FRONT_END
from ai_edge_rms_norm.ops import rms_norm

_CONFIG = r'backend_config = "{\22epsilon\22: 1e-05}"'


def mlir(function, *inputs, dynamic=False):
    class Module(torch.nn.Module):
        # torch 2.9 cannot trace dynamic dimensions of *args.
        def forward(self, x, other=None):
            return function(x) if other is None else function(x, other)

    shapes = ({0: torch.export.Dim("rows")},) * len(inputs) if dynamic else None
    program = torch.export.export(Module(), inputs, dynamic_shapes=shapes)
    return FRONT_END.lower_to_stablehlo(program).get_text()


class LoweringTest(parameterized.TestCase):
    @parameterized.parameters(
        (torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")
    )
    def test_rms_norm(self, dtype, element_type):
        x, weight = torch.ones(3, 16, dtype=dtype), torch.ones(16, dtype=dtype)
        tensor = f"tensor<3x16x{element_type}>"
        self.assertIn(
            "stablehlo.custom_call @ai_edge_torch.rms_norm(%arg0, %arg1)"
            f" {{{_CONFIG}}} : ({tensor}, tensor<16x{element_type}>) -> {tensor}",
            mlir(lambda x, w: rms_norm.rms_norm(x, w, 1e-5), x, weight),
        )

    def test_weight_may_be_absent_and_epsilon_default(self):
        self.assertIn(
            "stablehlo.custom_call @ai_edge_torch.rms_norm(%arg0)"
            r' {backend_config = "{\22epsilon\22: 1e-06}"}'
            " : (tensor<3x16xf32>) -> tensor<3x16xf32>",
            mlir(rms_norm.rms_norm, torch.ones(3, 16)),
        )

    def test_dynamic_rows(self):
        tensor = "tensor<?x16xf32>"
        x, residual = torch.ones(3, 16), torch.zeros(3, 16)
        self.assertIn(
            f"@ai_edge_torch.add_rms_norm(%arg0, %arg1) {{{_CONFIG}}}"
            f" : ({tensor}, {tensor}) -> ({tensor}, {tensor})",
            mlir(
                lambda x, r: rms_norm.add_rms_norm(x, r, None, 1e-5),
                x,
                residual,
                dynamic=True,
            ),
        )

    def test_float64_is_rejected(self):
        with self.assertRaisesRegex(Exception, "x must be f32, f16 or bf16.*3x16xf64"):
            mlir(rms_norm.rms_norm, torch.ones(3, 16, dtype=torch.float64))


if __name__ == "__main__":
    absltest.main()
