"""The PyTorch operators: eager, fake, autograd, export, compile and conversion."""

import math

import torch
from absl.testing import absltest, parameterized

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.ops import nn, rms_norm

RMS_NORM = torch.ops.ai_edge_torch.custom_rms_norm
ADD_RMS_NORM = torch.ops.ai_edge_torch.custom_add_rms_norm
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def reference(x, weight=None, epsilon=1e-6):
    """RMSNorm in float64, not rounded to x's dtype."""
    x = x.double()
    y = x / torch.sqrt(x.square().mean(-1, keepdim=True) + epsilon)
    return y if weight is None else y * weight.double()


def random(*shape, seed=0, dtype=torch.float32, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(requires_grad)


class TwoNorms(torch.nn.Module):
    def __init__(self, hidden_size):
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size, eps=1e-5)
        self.linear = torch.nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x):
        total, y = self.norm(self.linear(self.norm(x)), residual=x)
        return torch.nn.functional.silu(y) + total


class OpcheckTest(parameterized.TestCase):
    @parameterized.parameters(((4, 8),), ((2, 3, 8),), ((2, 2, 3, 8),), ((8,),))
    def test_shapes(self, shape):
        x = random(*shape, requires_grad=True)
        weight = random(8, seed=1, requires_grad=True)
        torch.library.opcheck(RMS_NORM, (x, weight, 1e-6))
        torch.library.opcheck(ADD_RMS_NORM, (x, random(*shape, seed=2), weight, 1e-6))

    @parameterized.parameters(1e-12, 1e-6, 1e-5, 0.5)
    def test_epsilons(self, epsilon):
        x = random(3, 8, requires_grad=True)
        torch.library.opcheck(RMS_NORM, (x, random(8), epsilon))

    def test_default_epsilon(self):
        x = random(3, 8, requires_grad=True)
        torch.library.opcheck(RMS_NORM, (x, random(8)))
        torch.library.opcheck(ADD_RMS_NORM, (x, x.detach(), random(8)))

    @parameterized.named_parameters(
        ("none", None),
        ("ones", torch.ones(8)),
        ("negative", -torch.arange(1.0, 9.0)),
        ("strided", torch.arange(16.0)[::2]),
    )
    def test_weights(self, weight):
        x = random(3, 8, requires_grad=True)
        torch.library.opcheck(RMS_NORM, (x, weight))

    @parameterized.named_parameters(DTYPES.items())
    def test_dtypes(self, dtype):
        x = random(3, 8, dtype=dtype, requires_grad=True)
        torch.library.opcheck(RMS_NORM, (x, random(8, dtype=dtype)))

    def test_non_contiguous_and_empty(self):
        x = random(6, 4, 8)
        for view in (x.transpose(0, 1), x[::2], x.permute(2, 1, 0), x[:0]):
            torch.library.opcheck(RMS_NORM, (view, None))
            torch.library.opcheck(ADD_RMS_NORM, (view, view.clone(), None))


class NumericsTest(parameterized.TestCase):
    @parameterized.product(
        dtype=list(DTYPES.values()),
        hidden_size=[1, 7, 640, 2048],
        with_weight=[False, True],
    )
    def test_one_rounding(self, dtype, hidden_size, with_weight):
        x = random(5, hidden_size, dtype=dtype)
        weight = random(hidden_size, seed=1, dtype=dtype) if with_weight else None
        y = arn.rms_norm(x, weight)
        self.assertEqual(y.dtype, dtype)
        # Half a unit of the result's dtype, and a few of the float32 arithmetic.
        eps = torch.finfo(dtype).eps
        rtol = 0.5 * eps + 4 * torch.finfo(torch.float32).eps
        rtol = 8 * eps if dtype == torch.float64 else rtol
        tiny = torch.finfo(dtype).smallest_normal
        torch.testing.assert_close(
            y.double(), reference(x, weight), rtol=rtol, atol=tiny * eps
        )

    def test_agrees_with_torch(self):
        x, weight = random(4, 9, 256), random(256, seed=1)
        expected = torch.nn.functional.rms_norm(x, (256,), weight, 1e-5)
        torch.testing.assert_close(arn.rms_norm(x, weight, 1e-5), expected)

    def test_float16_statistics_do_not_overflow(self):
        x = torch.full((2, 64), 1000.0, dtype=torch.float16)
        torch.testing.assert_close(arn.rms_norm(x), torch.ones_like(x))

    def test_float32_weight_for_bfloat16(self):
        x = random(4, 64, dtype=torch.bfloat16)
        weight = 1 + random(64, seed=1) / 512  # Rounds to 1 in bfloat16.
        y = arn.rms_norm(x, weight)
        self.assertEqual(y.dtype, torch.bfloat16)
        torch.testing.assert_close(y, reference(x, weight).bfloat16(), rtol=0, atol=0)

    def test_add(self):
        x, residual, weight = random(3, 64), random(3, 64, seed=1), random(64, seed=2)
        total, y = arn.add_rms_norm(x, residual, weight, 1e-5)
        torch.testing.assert_close(total, x + residual, rtol=0, atol=0)
        torch.testing.assert_close(y, arn.rms_norm(total, weight, 1e-5))

    def test_nan_and_infinity_stay_in_their_row(self):
        x = torch.ones(3, 4)
        x[0, 1], x[2, 3] = math.nan, math.inf
        y = arn.rms_norm(x)
        self.assertTrue(y[0].isnan().all())
        torch.testing.assert_close(y[1], torch.ones(4), rtol=1e-6, atol=0)
        self.assertEqual(y[2, :3].tolist(), [0, 0, 0])
        self.assertTrue(y[2, 3].isnan())


class ShapeTest(parameterized.TestCase):
    @parameterized.parameters(((7,),), ((4, 7),), ((2, 3, 7),), ((2, 3, 4, 7),))
    def test_shape_is_preserved(self, shape):
        x = random(*shape)
        y = arn.rms_norm(x)
        self.assertEqual(y.shape, x.shape)
        self.assertTrue(y.is_contiguous())

    @parameterized.parameters(64, 256, 640, 4096)
    def test_hidden_sizes(self, hidden_size):
        x, weight = random(2, hidden_size), random(hidden_size, seed=1)
        torch.testing.assert_close(
            arn.rms_norm(x, weight), reference(x, weight).float()
        )

    def test_zero_rows(self):
        x = torch.empty(0, 3, 8, requires_grad=True)
        y = arn.rms_norm(x, torch.ones(8))
        self.assertEqual(y.shape, (0, 3, 8))
        y.sum().backward()
        self.assertEqual(x.grad.shape, (0, 3, 8))


class AutogradTest(parameterized.TestCase):
    @parameterized.parameters(((5,),), ((3, 5),), ((2, 3, 5),))
    def test_gradcheck(self, shape):
        x = random(*shape, dtype=torch.float64, requires_grad=True)
        residual = random(*shape, seed=1, dtype=torch.float64, requires_grad=True)
        weight = random(5, seed=2, dtype=torch.float64, requires_grad=True)
        for inputs in ((x, weight, 1e-3), (x, None, 1e-3)):
            self.assertTrue(torch.autograd.gradcheck(RMS_NORM, inputs))
            self.assertTrue(torch.autograd.gradgradcheck(RMS_NORM, inputs))
        self.assertTrue(
            torch.autograd.gradcheck(ADD_RMS_NORM, (x, residual, weight, 1e-3))
        )

    def test_forward_mode(self):
        x = random(3, 5, dtype=torch.float64, requires_grad=True)
        weight = random(5, seed=2, dtype=torch.float64, requires_grad=True)
        for function, inputs in (
            (arn.rms_norm, (x, weight, 1e-3)),
            (arn.add_rms_norm, (x, x.detach() + 1, weight, 1e-3)),
        ):
            self.assertTrue(
                torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
            )

    def test_forward_mode_in_compiled_code(self):
        x, tangent = random(3, 5), random(3, 5, seed=1)

        def derivative(function):
            return torch.func.jvp(function, (x,), (tangent,))[1]

        compiled = torch.compile(lambda: derivative(arn.rms_norm), backend="eager")
        torch.testing.assert_close(compiled(), derivative(reference).float())

    def test_transforms_of_torch_func(self):
        x = random(3, 5, dtype=torch.float64)
        for transform in (torch.func.grad, torch.func.hessian):
            actual = transform(lambda x: arn.rms_norm(x).pow(3).sum())(x)
            expected = transform(lambda x: reference(x, None).pow(3).sum())(x)
            torch.testing.assert_close(actual, expected)
        batched = torch.func.vmap(lambda row: sum(arn.add_rms_norm(row, row)))(x)
        torch.testing.assert_close(batched, sum(arn.add_rms_norm(x, x)))

    def test_float16_gradients_have_the_dtypes_of_the_inputs(self):
        x = random(4, 64, dtype=torch.float16, requires_grad=True)
        weight = random(64, seed=1, requires_grad=True)
        arn.rms_norm(x, weight).float().square().sum().backward()
        self.assertEqual(x.grad.dtype, torch.float16)
        self.assertEqual(weight.grad.dtype, torch.float32)
        x64 = x.detach().double().requires_grad_()
        weight64 = weight.detach().double().requires_grad_()
        reference(x64, weight64).square().sum().backward()
        torch.testing.assert_close(x.grad.double(), x64.grad, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(
            weight.grad.double(), weight64.grad, rtol=2e-2, atol=2e-2
        )


class ValidationTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("dtype", lambda: (torch.ones(2, 4, dtype=torch.int32), None), "int32"),
        ("scalar", lambda: (torch.tensor(1.0), None), "scalar"),
        ("empty", lambda: (torch.ones(2, 0), None), r"\(2, 0\)"),
        ("weight_size", lambda: (torch.ones(2, 4), torch.ones(3)), r"\(3,\)"),
        ("weight_rank", lambda: (torch.ones(2, 4), torch.ones(1, 4)), r"\(1, 4\)"),
        ("weight_dtype", lambda: (torch.ones(2, 4), torch.ones(4).half()), "float16"),
        (
            "weight_device",
            lambda: (torch.ones(2, 4), torch.ones(4, device="meta")),
            "meta",
        ),
        ("both_empty", lambda: (torch.ones(2, 0), torch.ones(0)), r"\(2, 0\)"),
        ("complex", lambda: (torch.ones(2, 4) * 1j, torch.ones(4) * 1j), "complex64"),
        ("zero", lambda: (torch.ones(2, 4), None, 0.0), "got 0.0"),
        ("negative", lambda: (torch.ones(2, 4), None, -1e-6), "got -1e-06"),
        ("nan", lambda: (torch.ones(2, 4), None, math.nan), "got nan"),
        ("infinite", lambda: (torch.ones(2, 4), None, math.inf), "got inf"),
    )
    def test_eager_and_fake_reject(self, make_arguments, message):
        with self.assertRaisesRegex((ValueError, TypeError), message):
            RMS_NORM(*make_arguments())
        with (
            torch._subclasses.FakeTensorMode(),
            self.assertRaisesRegex((ValueError, TypeError), message),
        ):
            RMS_NORM(*make_arguments())

    @parameterized.named_parameters(
        ("shape", torch.ones(1, 4), r"shape of x .*\[2, 4\].* got .*\[1, 4\]"),
        ("dtype", torch.ones(2, 4).double(), "float64"),
    )
    def test_residual(self, residual, message):
        with self.assertRaisesRegex((ValueError, TypeError), message):
            ADD_RMS_NORM(torch.ones(2, 4), residual, None)


class ModuleTest(absltest.TestCase):
    def test_state_dict_is_that_of_torch(self):
        theirs = torch.nn.RMSNorm(64, eps=1e-5)
        theirs.weight.data = random(64)
        ours = nn.RMSNorm([64], eps=1e-5)
        ours.load_state_dict(theirs.state_dict())
        x = random(3, 64, seed=1)
        torch.testing.assert_close(ours(x), theirs(x))
        self.assertEmpty(nn.RMSNorm(64, elementwise_affine=False).state_dict())

    def test_weight_offset(self):
        norm = nn.RMSNorm(64, weight_offset=1.0)
        x = random(3, 64)
        torch.testing.assert_close(norm(x), arn.rms_norm(x))
        norm.weight.data = random(64, seed=1)
        torch.testing.assert_close(norm(x), arn.rms_norm(x, 1 + norm.weight))

    def test_rejects_other_shapes(self):
        for shape in ((3, 64), 0, ()):
            with self.assertRaisesRegex(ValueError, "single int > 0"):
                nn.RMSNorm(shape)


class IntegrationTest(absltest.TestCase):
    def test_export_keeps_one_node_per_norm(self):
        module, x = TwoNorms(16).eval(), random(3, 16)
        program = torch.export.export(module, (x,))
        targets = [node.target for node in program.graph.nodes]
        self.assertEqual(targets.count(RMS_NORM.default), 1)
        self.assertEqual(targets.count(ADD_RMS_NORM.default), 1)
        torch.testing.assert_close(program.module()(x), module(x))

    def test_export_with_dynamic_shape(self):
        class Norm(torch.nn.Module):
            def forward(self, x):
                return rms_norm.rms_norm(x)  # The default epsilon, on purpose.

        rows = torch.export.Dim("rows")
        program = torch.export.export(
            Norm(), (random(3, 16),), dynamic_shapes=({0: rows},)
        )
        x = random(11, 16, seed=1)
        torch.testing.assert_close(program.module()(x), rms_norm.rms_norm(x))

    def test_compile_full_graph(self):
        module, x = TwoNorms(16), random(3, 16, requires_grad=True)
        compiled = torch.compile(module, fullgraph=True)
        torch.testing.assert_close(compiled(x), module(x))
        (gradient,) = torch.autograd.grad(compiled(x).sum(), x)
        (expected,) = torch.autograd.grad(module(x).sum(), x)
        torch.testing.assert_close(gradient, expected)

    def test_vmap(self):
        x, weight = random(5, 3, 16), random(16, seed=1)
        batched = torch.func.vmap(lambda row: RMS_NORM(row, weight))(x)
        torch.testing.assert_close(batched, RMS_NORM(x, weight))

    def test_conversion_end_to_end(self):
        module, x = TwoNorms(64).eval(), random(3, 64)
        model = arn.convert(module, (x,))
        self.assertLen(model.rms_norm_ops(), 2)
        torch.testing.assert_close(
            torch.from_numpy(model(x.numpy())), module(x).detach()
        )


if __name__ == "__main__":
    absltest.main()
