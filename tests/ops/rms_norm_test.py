"""The functions: export, numerics, derivatives, and equality with PyTorch's."""

import contextlib
import io
import math
import sys
import types
import unittest
import warnings
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from torch._subclasses import FakeTensorMode

import ai_edge_rms_norm as arn

RMS_NORM = torch.ops.ai_edge_torch.custom_rms_norm
ADD_RMS_NORM = torch.ops.ai_edge_torch.custom_add_rms_norm
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FUNCTIONS = (("function", arn.rms_norm), ("operator", RMS_NORM))


def random(*shape, seed=0, dtype=torch.float32, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(requires_grad)


def reference(x, weight=None, epsilon=1e-6):
    """RMSNorm in float64, not rounded to x's dtype."""
    x = x.double()
    y = x / torch.sqrt(x.square().mean(-1, keepdim=True) + epsilon)
    return y if weight is None else y * weight.double()


class Call(torch.nn.Module):
    """A function as a module, which torch.export wants."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, weight):
        return self.function(x, weight)


def calls(program):
    return [n.target for n in program.graph.nodes if n.op == "call_function"]


def compiled_calls(function, *inputs):
    """Compiles; returns the result and the targets of what the backend gets."""
    from torch._dynamo.backends.common import aot_autograd

    targets = []

    def compiler(module, _):
        targets.extend(n.target for n in module.graph.nodes)
        return module.forward

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    torch._dynamo.reset()
    y = torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    return y, targets


class ExportTest(parameterized.TestCase):
    @parameterized.product(
        strict=[False, True],
        x_dtype=DTYPES,
        weight_dtype=[None, *DTYPES],
    )
    def test_one_operator_with_the_result_of_eager_mode(
        self, strict, x_dtype, weight_dtype
    ):
        x = random(3, 16, dtype=x_dtype)
        weight = None if weight_dtype is None else random(16, seed=1).to(weight_dtype)
        module = Call(arn.rms_norm)
        program = torch.export.export(module, (x, weight), strict=strict)
        self.assertEqual(calls(program).count(RMS_NORM.default), 1)
        actual, expected = program.module()(x, weight), module(x, weight)
        self.assertEqual(actual.dtype, expected.dtype)
        # Two roundings of the weight from float64; else the same arithmetic.
        torch.testing.assert_close(actual, expected)

    @parameterized.parameters(
        *(
            (getattr(torch.export, name),)
            for name in ("draft_export", "export_for_training")
            if hasattr(torch.export, name)
        )
    )
    def test_other_exports(self, export):
        program = export(Call(arn.rms_norm), (random(3, 16), random(16)))
        self.assertIn(RMS_NORM.default, calls(program))

    def test_epsilon_none_is_the_number(self):
        for dtype in DTYPES:
            x = random(3, 16, dtype=dtype)
            program = torch.export.export(
                Call(lambda x, w: arn.rms_norm(x, w, None)), (x, None)
            )
            (node,) = (n for n in program.graph.nodes if n.target == RMS_NORM.default)
            expected = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
            self.assertEqual(node.args[2], expected)
            # The epsilon that torch adds, in a row where it counts.
            x = torch.full((3, 16), expected**0.5, dtype=dtype)
            torch.testing.assert_close(
                program.module()(x, None), torch.nn.functional.rms_norm(x, (16,))
            )

    def test_decomposition_keeps_the_operator_unless_asked(self):
        x, weight = random(3, 16), random(16, seed=1)
        program = torch.export.export(Call(arn.rms_norm), (x, weight))
        for decomposed in (
            program.run_decompositions(),
            program.run_decompositions({}),
        ):
            self.assertEqual(calls(decomposed), [RMS_NORM.default])
        decomposed = program.run_decompositions(
            {
                RMS_NORM.default: lambda x, weight, epsilon=1e-6: (
                    torch.nn.functional.rms_norm(x, x.shape[-1:], weight, epsilon)
                )
            }
        )
        self.assertNotIn(RMS_NORM.default, calls(decomposed))
        torch.testing.assert_close(
            decomposed.module()(x, weight), arn.rms_norm(x, weight)
        )

    def test_file(self):
        x, weight = random(3, 16), random(16, seed=1)
        program = torch.export.export(
            Call(lambda x, w: arn.add_rms_norm(x, x * w, w, 1e-5)), (x, weight)
        )
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file)
        self.assertIn(ADD_RMS_NORM.default, calls(loaded))
        torch.testing.assert_close(
            loaded.module()(x, weight), program.module()(x, weight), rtol=0, atol=0
        )

    @parameterized.parameters(False, True)
    def test_sum_that_promotes_or_broadcasts(self, strict):
        x = random(3, 16, dtype=torch.bfloat16)
        for residual in (random(3, 16, seed=1), random(16, seed=1, dtype=x.dtype)):
            module = Call(lambda x, r: arn.add_rms_norm(x, r))
            program = torch.export.export(module, (x, residual), strict=strict)
            self.assertIn(RMS_NORM.default, calls(program))
            for actual, expected in zip(
                program.module()(x, residual), module(x, residual), strict=True
            ):
                self.assertEqual(actual.dtype, (x + residual).dtype)
                torch.testing.assert_close(actual, expected, rtol=0, atol=0)

    def test_range_safe_is_the_same_operator(self):
        for function in (arn.rms_norm, arn.add_rms_norm):
            program = torch.export.export(
                Call(lambda x, w, f=function: f(x, w, range_safe=True)),
                (
                    random(3, 16),
                    random(16) if function is arn.rms_norm else random(3, 16),
                ),
            )
            self.assertLen(
                {RMS_NORM.default, ADD_RMS_NORM.default} & set(calls(program)), 1
            )

    @parameterized.product(strict=[False, True], function=[arn.rms_norm, RMS_NORM])
    def test_vmap_inside(self, strict, function):
        x, weights = random(3, 16), random(3, 16, seed=1)
        for module in (
            Call(lambda x, w: torch.vmap(function)(x, w)),
            Call(lambda x, w: torch.vmap(lambda x: function(x, w[0]))(x)),
        ):
            expected = module(x, weights)
            program = torch.export.export(module, (x, weights), strict=strict)
            torch.testing.assert_close(program.module()(x, weights), expected)
            decomposed = program.run_decompositions().module()
            torch.testing.assert_close(decomposed(x, weights), expected)

    def test_refuses_what_the_operator_does(self):
        with self.assertRaisesRegex(Exception, "x must be float32.* got torch.complex"):
            torch.export.export(
                Call(arn.rms_norm), (random(3, 16).to(torch.complex64), None)
            )

    @parameterized.product(
        device=["cuda", "xpu", "mps", "cpu"],
        weight_dtype=[torch.bfloat16, torch.float32],
        range_safe=[False, True],
    )
    def test_autocast_decides_on_the_dtype_as_for_torch(
        self, device, weight_dtype, range_safe
    ):
        def run():
            y = arn.rms_norm(x, weight, range_safe=range_safe)
            return y, arn.add_rms_norm(x, x, weight, range_safe=range_safe)[1]

        with FakeTensorMode():  # No such device is needed.
            x = torch.empty(3, 16, device=device, dtype=torch.bfloat16)
            weight = torch.empty(16, device=device, dtype=weight_dtype)
            torch.set_autocast_enabled(device, True)
            try:
                expected = torch.nn.functional.rms_norm(x, (16,), weight, 1e-6).dtype
                eager = run()
                operator = RMS_NORM(x, weight)
                with mock.patch.object(torch.compiler, "_is_exporting_flag", True):
                    emitted = run()
            finally:
                torch.set_autocast_enabled(device, False)
        self.assertEqual({y.dtype for y in (*eager, *emitted)}, {expected})
        self.assertEqual(operator.dtype, x.dtype)

    def test_operator_has_derivatives_while_exporting(self):
        inputs = (
            random(3, 5, dtype=torch.float64, requires_grad=True),
            random(5, seed=1, dtype=torch.float64, requires_grad=True),
        )
        with mock.patch.object(torch.compiler, "_is_exporting_flag", True):
            y = RMS_NORM(*inputs)
            total, z = ADD_RMS_NORM(inputs[0], inputs[0], inputs[1])
            actual = torch.autograd.grad((y * z + total).sum(), inputs)
        y, (total, z) = RMS_NORM(*inputs), ADD_RMS_NORM(inputs[0], *inputs)
        expected = torch.autograd.grad((y * z + total).sum(), inputs)
        torch.testing.assert_close(actual, expected)


class CompileTest(parameterized.TestCase):
    @parameterized.named_parameters(
        *FUNCTIONS,
        ("add", lambda x, w: arn.add_rms_norm(x, x, w)[1]),
        ("add_operator", lambda x, w: ADD_RMS_NORM(x, x, w)[1]),
        ("range_safe", lambda x, w: arn.rms_norm(x, w, range_safe=True)),
    )
    def test_compilers_get_the_decomposition(self, function):
        x, weight = random(3, 16, requires_grad=True), random(16, requires_grad=True)
        y, targets = compiled_calls(function, x, weight)
        torch.testing.assert_close(y, function(x, weight))
        self.assertIn(torch.ops.aten.rsqrt.default, targets)
        self.assertNotIn("ai_edge_torch", str(targets))

    def test_dynamic(self):
        torch._dynamo.reset()
        compiled = torch.compile(arn.add_rms_norm, fullgraph=True, dynamic=True)
        for rows in (3, 5):
            x, weight = random(rows, 16), random(16, seed=1)
            torch.testing.assert_close(
                compiled(x, x, weight), arn.add_rms_norm(x, x, weight)
            )

    def test_jit_trace(self):
        x, weight = random(3, 16), random(16, seed=1)
        traced = torch.jit.trace(arn.rms_norm, (x, weight))
        torch.testing.assert_close(traced(x, weight), arn.rms_norm(x, weight))


class NumericsTest(parameterized.TestCase):
    @parameterized.product(
        function=[arn.rms_norm, RMS_NORM],
        dtype=[torch.float16, torch.bfloat16, torch.float32],
        same=[True, False],
        epsilon=[1e-12, 1e-6],
    )
    def test_rounds_once(self, function, dtype, same, epsilon):
        # Rows of float16's smallest normal numbers, where 1e-6 decides.
        x = (random(64, 640) * torch.logspace(-4, 1, 64)[:, None]).to(dtype)
        weight = (1 + random(640, seed=1) / 512).to(dtype if same else torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch.rms_norm warns about two dtypes.
            y = function(x, weight, epsilon)
        self.assertEqual(y.dtype, dtype)
        eps = torch.finfo(dtype).eps
        rtol = 0.5 * eps + 4 * torch.finfo(torch.float32).eps
        expected = reference(x, weight, epsilon)
        torch.testing.assert_close(y.double(), expected, rtol=rtol, atol=1e-7)

    def test_refuses_epsilon(self):
        for epsilon in (0.0, -1e-6, math.nan, math.inf):
            for run in (
                lambda e: arn.rms_norm(torch.ones(2, 4), None, e),
                lambda e: arn.add_rms_norm(torch.ones(2, 4), torch.ones(2, 4), None, e),
            ):
                with self.assertRaisesRegex(ValueError, f"epsilon .* got {epsilon}"):
                    run(epsilon)

    def test_refuses_shapes(self):
        with self.assertRaises(IndexError):
            arn.rms_norm(torch.tensor(1.0))
        with self.assertRaises(RuntimeError):
            arn.rms_norm(torch.ones(2, 4), torch.ones(2, 4))


class RangeSafeTest(parameterized.TestCase):
    @parameterized.product(
        magnitude=[1e-38, 1e-30, 1e-10, 1.0, 1e10, 1e19, 1e20, 1e30, 3e38],
        dtype=[torch.float32, torch.bfloat16],
        compiled=[False, True],
    )
    def test_range(self, magnitude, dtype, compiled):
        # epsilon counts as much as the rows do.
        epsilon = min(magnitude, 1e-3) ** 2
        x = (random(4, 64).clamp(-1, 1) * magnitude).to(dtype)
        weight = random(64, seed=1)
        function = arn.rms_norm
        if compiled:
            torch._dynamo.reset()
            function = torch.compile(function, fullgraph=True)
        y = function(x, weight, epsilon, range_safe=True)
        self.assertEqual(y.dtype, dtype)
        rtol = 2e-6 + torch.finfo(dtype).eps / 2
        torch.testing.assert_close(
            y.double(), reference(x, weight, epsilon), rtol=rtol, atol=1e-37
        )
        _, z = arn.add_rms_norm(
            x, torch.zeros_like(x), weight, epsilon, range_safe=True
        )
        torch.testing.assert_close(z, y, rtol=2 * rtol, atol=1e-37)

    def test_plain_form_is_wrong_there(self):
        self.assertEqual(arn.rms_norm(torch.full((1, 4), 1e20)).tolist(), [[0] * 4])

    def test_zeros_infinity_and_nan_as_in_the_plain_form(self):
        x = torch.ones(4, 4)
        x[0], x[1, 1], x[2, 1] = 0, math.inf, math.nan
        torch.testing.assert_close(
            arn.rms_norm(x, range_safe=True), arn.rms_norm(x), equal_nan=True
        )

    def test_derivatives(self):
        x = random(3, 5, dtype=torch.float64, requires_grad=True)
        weight = random(5, seed=1, dtype=torch.float64, requires_grad=True)

        def function(x, weight):
            return arn.rms_norm(x, weight, 1e-3, range_safe=True)

        torch.autograd.gradcheck(function, (x, weight), check_forward_ad=True)
        torch.autograd.gradgradcheck(function, (x, weight))
        large = (x.detach() * 1e30).float().requires_grad_()
        (gradient,) = torch.autograd.grad(
            arn.rms_norm(large, range_safe=True)[:, 0].sum() * 1e30, large
        )
        (expected,) = torch.autograd.grad(reference(x, None, 1e-66)[:, 0].sum(), x)
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-6)


class TransformTest(parameterized.TestCase):
    @parameterized.named_parameters(*FUNCTIONS)
    def test_derivatives(self, function):
        x = random(2, 3, 5, dtype=torch.float64, requires_grad=True)
        weight = random(5, seed=1, dtype=torch.float64, requires_grad=True)
        for inputs in ((x, weight, 1e-3), (x, None, 1e-3)):
            torch.autograd.gradcheck(
                function, inputs, check_forward_ad=True, check_batched_grad=True
            )
            torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)

    @parameterized.named_parameters(*FUNCTIONS)
    def test_functorch(self, function):
        x, weights = random(4, 3, 5), random(4, 5, seed=1)
        torch.testing.assert_close(
            torch.func.vmap(function)(x, weights),
            torch.stack([function(*pair) for pair in zip(x, weights, strict=True)]),
        )
        for transform in (torch.func.grad, torch.func.hessian):
            actual = transform(lambda x: function(x, weights[0]).pow(3).sum())(x)
            expected = transform(lambda x: reference(x, weights[0]).pow(3).sum())(x)
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)

    @parameterized.named_parameters(*FUNCTIONS)
    def test_meta_and_fake(self, function):
        for mode, device in (
            (contextlib.nullcontext(), "meta"),
            (FakeTensorMode(), "cpu"),
        ):
            with mode:
                x = torch.empty(3, 5, device=device, dtype=torch.float16)
                y = function(x, torch.empty(5, device=device))
                self.assertEqual((y.shape, y.dtype), (x.shape, x.dtype))

    def test_nested_jagged(self):
        rows = [random(2, 8), random(5, 8, seed=1)]
        nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
        weight = random(8, seed=2)
        for function in (arn.rms_norm, RMS_NORM):
            for row, y in zip(rows, function(nested, weight).unbind(), strict=True):
                torch.testing.assert_close(y, function(row, weight))


class OpInfoTest(parameterized.TestCase):
    """The samples that PyTorch tests torch.nn.functional.rms_norm with."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Only PyTorch's own test case needs expecttest.
        stub = types.ModuleType("expecttest")
        stub.TestCase = unittest.TestCase
        with mock.patch.dict(sys.modules, {"expecttest": stub}):
            from torch.testing._internal import common_methods_invocations as database
        (cls.info,) = (
            op for op in database.op_db if op.name == "nn.functional.rms_norm"
        )

    @parameterized.product(dtype=DTYPES, function=[arn.rms_norm, RMS_NORM])
    def test_samples(self, dtype, function):
        count = 0
        for sample in self.info.sample_inputs("cpu", dtype, requires_grad=True):
            shape = sample.args[0]
            weight = sample.kwargs.get("weight", (*sample.args[1:], None)[0])
            epsilon = sample.kwargs.get("eps")
            x = sample.input
            if 0 in shape:
                continue  # torch normalizes rows of no elements.
            if epsilon is None:
                epsilon = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
            # The last dimensions as one.
            flat = x.flatten(x.dim() - len(shape))
            scale = None if weight is None else weight.flatten()
            if epsilon <= 0:
                with self.assertRaisesRegex(ValueError, "epsilon must be finite"):
                    function(flat, scale, epsilon)
                continue
            expected = self.info(sample.input, *sample.args, **sample.kwargs)
            y = function(flat, scale, epsilon).reshape(expected.shape)
            torch.testing.assert_close(y, expected)
            inputs = [t for t in (x, weight) if t is not None]
            for actual, gradient in zip(
                torch.autograd.grad(y.sum(), inputs),
                torch.autograd.grad(expected.sum(), inputs),
                strict=True,
            ):
                torch.testing.assert_close(actual, gradient)
            count += 1
        self.assertGreater(count, 3)


if __name__ == "__main__":
    absltest.main()
