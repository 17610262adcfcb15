"""The module: a torch.nn.RMSNorm as far as the world can see."""

import copy
import math
import pickle
import warnings

import numpy as np
import torch
from absl.testing import absltest, parameterized

import ai_edge_rms_norm as arn

RMS_NORM = torch.ops.ai_edge_torch.custom_rms_norm.default
ADD_RMS_NORM = torch.ops.ai_edge_torch.custom_add_rms_norm.default


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = arn.RMSNorm(8, weight_offset=1.0)
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        total, y = self.norm(self.linear(x), residual=x)
        return total * y


def sequence():
    norms = [
        arn.RMSNorm(8),
        arn.RMSNorm(8, eps=None, elementwise_affine=False),
        arn.RMSNorm(8, weight_offset=1.0),
        arn.RMSNorm(8, range_safe=True),
    ]
    modules = torch.nn.Sequential(torch.nn.Linear(8, 8), *norms)
    for parameter in modules.parameters():
        torch.nn.init.normal_(parameter)
    return modules


def operators(program):
    targets = [node.target for node in program.graph.nodes]
    return targets.count(RMS_NORM), targets.count(ADD_RMS_NORM)


class ConstructorTest(parameterized.TestCase):
    @parameterized.parameters(8, np.int64(8), [8], (np.int32(8),), torch.Size([8]))
    def test_shapes(self, shape):
        norm = arn.RMSNorm(shape)
        self.assertIsInstance(norm, torch.nn.RMSNorm)
        self.assertEqual(norm.normalized_shape, (8,))
        self.assertIs(type(norm.normalized_shape[0]), int)
        torch.testing.assert_close(norm(random(3, 8)), arn.rms_norm(random(3, 8)))

    @parameterized.parameters(0.0, -1e-6, math.nan, math.inf)
    def test_epsilon(self, eps):
        with self.assertRaisesRegex(ValueError, f"epsilon .* got {eps}"):
            arn.RMSNorm(8, eps)

    def test_epsilon_none(self):
        ours, theirs = arn.RMSNorm(8, eps=None), torch.nn.RMSNorm(8)
        self.assertIsNone(ours.eps)
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            x = (random(3, 8) * 1e-4).to(dtype)
            ours.to(dtype), theirs.to(dtype)
            torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
            program = torch.export.export(ours, (x,))
            (node,) = (n for n in program.graph.nodes if n.target == RMS_NORM)
            computed = torch.promote_types(dtype, torch.float32)
            self.assertEqual(node.args[2], torch.finfo(computed).eps)

    def test_rows_of_another_size(self):
        norm, x = arn.RMSNorm(8), random(2, 4)
        with self.assertRaises(RuntimeError):
            norm(x)
        with self.assertRaisesRegex(Exception, r"must be \(8,\), got .*4"):
            torch.export.export(norm, (x,))
        # Without a weight nothing depends on the size.
        norm = arn.RMSNorm(8, elementwise_affine=False)
        program = torch.export.export(norm, (x,))
        for y in (norm(x), torch.jit.script(norm)(x), program.module()(x)):
            torch.testing.assert_close(y, arn.rms_norm(x))


class DropInTest(parameterized.TestCase):
    def test_state_dict_both_ways(self):
        ours, theirs = arn.RMSNorm(8, 1e-5), torch.nn.RMSNorm(8, 1e-5)
        x = random(3, 8)
        for source, target in ((ours, theirs), (theirs, ours)):
            torch.nn.init.normal_(source.weight)
            target.load_state_dict(source.state_dict())
            torch.testing.assert_close(target(x), source(x), rtol=0, atol=0)

    def test_copies(self):
        for module in (sequence(), Block()):
            x = random(3, 8)
            for other in (
                copy.deepcopy(module),
                pickle.loads(pickle.dumps(module)),
            ):
                torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)
                self.assertEqual(repr(other), repr(module))

    def test_weight_is_on_meta_until_it_is_given(self):
        norm = arn.RMSNorm(8, device="meta", dtype=torch.bfloat16)
        self.assertEqual(norm(torch.empty(3, 8, device="meta")).shape, (3, 8))
        norm.to_empty(device="cpu").reset_parameters()
        self.assertEqual(norm.weight.tolist(), [1] * 8)

    def test_parametrize(self):
        class Exponential(torch.nn.Module):
            def forward(self, x):
                return x.exp()

        norm, x = arn.RMSNorm(8), random(3, 8)
        torch.nn.utils.parametrize.register_parametrization(
            norm, "weight", Exponential()
        )
        torch.testing.assert_close(norm(x), math.e * arn.rms_norm(x))
        program = torch.export.export(norm, (x,))
        self.assertEqual(operators(program), (1, 0))
        torch.testing.assert_close(program.module()(x), norm(x))

    @parameterized.parameters(
        arn.RMSNorm, lambda size: Block(), lambda size: sequence()
    )
    def test_symbolic_trace(self, make):
        module, x = make(8), random(3, 8)
        traced = torch.fx.symbolic_trace(module)
        torch.testing.assert_close(traced(x), module(x), rtol=0, atol=0)
        self.assertEqual(
            operators(torch.export.export(traced, (x,))),
            operators(torch.export.export(module, (x,))),
        )

    @parameterized.parameters(arn.RMSNorm, lambda size: sequence())
    def test_script(self, make):
        module, x = make(8), random(3, 8)
        scripted = torch.jit.script(module)
        torch.testing.assert_close(scripted(x), module(x))
        if isinstance(module, torch.nn.Sequential):
            large = x * 1e30
            scripted = torch.jit.script(module[-1])
            torch.testing.assert_close(scripted(large), module[-1](large))
            self.assertGreater(scripted(large).abs().max().item(), 0.1)

    @parameterized.parameters(False, True)
    def test_compile(self, dynamic):
        torch._dynamo.reset()
        module = Block()
        compiled = torch.compile(module, fullgraph=True, dynamic=dynamic)
        for rows in (3, 5):
            x = random(rows, 8)
            torch.testing.assert_close(compiled(x), module(x))

    def test_forward_takes_x_by_name(self):
        norm, x = arn.RMSNorm(8), random(3, 8)
        torch.testing.assert_close(norm(x=x), norm(x), rtol=0, atol=0)

    def test_autocast(self):
        block = Block()
        linear, norm, x = block.linear, block.norm, random(3, 8)
        with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
            warnings.simplefilter("error")
            self.assertEqual(norm(linear(x)).dtype, torch.bfloat16)
            for a, b in ((x, linear(x)), (linear(x), x)):
                total, y = norm(a, residual=b)
                torch.testing.assert_close(total, a + b, rtol=0, atol=0)
                torch.testing.assert_close(y, norm(a + b), rtol=0, atol=0)
            program = torch.export.export(block, (x,))
            torch.testing.assert_close(program.module()(x), block(x))
        self.assertEqual(operators(program), (1, 0))

    def test_half_module_with_offset_rounds_once(self):
        norm = arn.RMSNorm(64, weight_offset=1.0, dtype=torch.bfloat16)
        torch.nn.init.normal_(norm.weight, std=1e-3)
        x = random(3, 64).bfloat16()
        weight = 1 + norm.weight.double()
        square = x.double().square().mean(-1, keepdim=True)
        expected = x.double() / (square + 1e-6).sqrt() * weight
        program = torch.export.export(norm, (x,))
        for y in (norm(x), program.module()(x)):
            torch.testing.assert_close(y, expected.bfloat16(), rtol=0, atol=0)

    def test_nested_jagged(self):
        nested = torch.nested.nested_tensor(
            [random(2, 8), random(5, 8)], layout=torch.jagged
        )
        norm = arn.RMSNorm(8)
        total, y = norm(nested, nested)
        for actual, expected in ((y, norm(total)), (norm(nested), norm(nested))):
            torch.testing.assert_close(actual.values(), expected.values())
        torch.testing.assert_close(norm(nested).values(), norm(nested.values()))


if __name__ == "__main__":
    absltest.main()
