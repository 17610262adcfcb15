"""Decomposed RMSNorm in PyTorch becomes one operator while converting."""

import numpy as np
import torch
from absl.testing import absltest, parameterized
from litert_torch.generative.layers import normalization
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.llama import modeling_llama

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.conversion import fx_passes
from ai_edge_rms_norm.tflite import flatbuffer
from tests import pattern_cases

_SIZE = pattern_cases.SIZE
_CASES = {case.name: case for case in pattern_cases.NORMS if case.torch}


class Written(torch.nn.Module):
    """y = function(x, weight), with an epsilon of 1e-4."""

    def __init__(self, function):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-2, 3, _SIZE))
        self.function = function

    def forward(self, x):
        return self.function(x, self.weight)


def mean_square(x):
    return x.square().mean(-1, keepdim=True) + 1e-4


# Those of tests/pattern_cases.py and these, which only torch can write.
_FORMULAS = {
    "one_plus": lambda x, w: x * torch.rsqrt(mean_square(x)) * (1 + w),
    "two_weights": lambda x, w: x * torch.rsqrt(mean_square(x)) * (w + 2) * w,
    "functional": lambda x, w: torch.nn.functional.rms_norm(x, (_SIZE,), w, 1e-4),
    "full_like": lambda x, w: (
        x
        * torch.rsqrt(x.square().mean(-1, True) + torch.full_like(x[..., :1], 1e-4))
        * w
    ),
    "contiguous": lambda x, w: (
        (x.detach() * torch.rsqrt(mean_square(x).contiguous())).clone() * w
    ),
    # Each [:] is a slice where dimensions are dynamic.
    "sliced": lambda x, w: (
        x
        * torch.rsqrt(torch.einsum("btd,btd->bt", x, x)[:, :, None] / _SIZE + 1e-4)
        * w
    ),
}
_OTHERS = {
    "rows_of_others": lambda x, w: x[:-1] * torch.rsqrt(mean_square(x)[1:]) * w,
    "all_dimensions": lambda x, w: (
        x * torch.rsqrt(x.square().mean(dim=None, keepdim=True) + 1e-4) * w
    ),
    "computed_epsilon": lambda x, w: (
        x * torch.rsqrt(x.square().mean(-1, keepdim=True) + w.abs().mean())
    ),
    "other_x": lambda x, w: (x + 1) * torch.rsqrt(mean_square(x)) * w,
    "layer_norm": lambda x, w: torch.nn.functional.layer_norm(x, (_SIZE,), w),
    "channels_first": lambda x, w: (
        x * torch.rsqrt(mean_square(x.transpose(1, 2))).transpose(1, 2)
    ),
    "scaled_addition": lambda x, w: (
        x * torch.rsqrt(torch.add(x.square().mean(-1, keepdim=True), 1e-4, alpha=2))
    ),
    "sum_of_other_letters": lambda x, w: (
        x * torch.rsqrt(torch.einsum("btd,btd->bd", x, x)[:, None] / _SIZE + 1e-4)
    ),
}


def random(*shape, dtype=torch.float32):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return (0.03 * x).to(dtype)  # So small that epsilon matters.


def exported(module, x):
    program = torch.export.export(module.eval(), (x,))
    return program.run_decompositions()


def targets(program) -> list[str]:
    return [
        str(node.target)
        for node in program.graph.nodes
        if node.op == "call_function" and "custom_rms_norm" in str(node.target)
    ]


class PassTest(parameterized.TestCase):
    @parameterized.parameters(*_FORMULAS)
    def test_formulas(self, name):
        module, x = Written(_FORMULAS[name]), random(2, 3, _SIZE)
        program = exported(module, x)
        self.assertEqual(fx_passes.fuse_decomposed(program).fused, 1)
        self.assertLen(targets(program), 1)
        (node,) = (n for n in program.graph.nodes if "custom" in str(n.target))
        self.assertEqual(node.args[2], 1e-4)
        self.assertIsNotNone(node.args[1])
        torch.testing.assert_close(program.module()(x), module(x), rtol=2e-6, atol=1e-6)
        self.assertEqual(fx_passes.fuse_decomposed(program).fused, 0)

    @parameterized.parameters(*_OTHERS)
    def test_others_are_left_alone(self, name):
        program = exported(Written(_OTHERS[name]), random(2, 3, _SIZE))
        before = str(program.graph)
        self.assertEqual(fx_passes.fuse_decomposed(program).fused, 0)
        self.assertEqual(str(program.graph), before)

    @parameterized.parameters(True, False)
    def test_epsilon_in_a_buffer(self, is_written):
        """A buffer that the forward writes is not a constant."""

        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("epsilon", torch.tensor(1e-4))

            def forward(self, x):
                if is_written:
                    self.epsilon.mul_(2)
                shifted = x.square().mean(-1, keepdim=True) + self.epsilon
                return x * torch.rsqrt(shifted)

        x = random(2, _SIZE)
        report = fx_passes.fuse_decomposed(exported(Module(), x))
        self.assertEqual(report.fused, int(not is_written))
        self.assertLen(report.skipped, int(is_written))
        if is_written:
            self.assertRegex(report.skipped[0].reason, "is not a scalar constant")

    def test_reasons(self):
        """They are returned and logged."""
        program = exported(
            Written(lambda x, w: x / (x.square().mean(-1, True).sqrt() + 1e-4)),
            random(2, _SIZE),
        )
        with self.assertLogs("absl", "INFO") as logs:
            report = fx_passes.fuse_decomposed(program)
        self.assertRegex(report.skipped[0].reason, "epsilon is added to the root")
        self.assertIn("Not fused, sqrt: epsilon is added to the root", logs.output[0])

    @parameterized.product(
        make=[
            lambda: modeling_llama.LlamaRMSNorm(_SIZE),
            lambda: modeling_gemma3.Gemma3RMSNorm(_SIZE),
        ],
        dtype=[torch.float16, torch.bfloat16],
    )
    def test_half_precision(self, make, dtype):
        """Llama casts before the weight, Gemma after it."""
        module, x = make(), random(2, 3, _SIZE, dtype=dtype)
        torch.nn.init.normal_(module.weight)
        module = module.to(dtype)
        program = exported(module, x)
        self.assertEqual(fx_passes.fuse_decomposed(program).fused, 1)
        self.assertNotIn("rsqrt", str(program.graph))
        (node,) = (n for n in program.graph.nodes if "custom" in str(n.target))
        self.assertEqual(node.args[0].meta["val"].dtype, dtype)
        tolerance = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            program.module()(x), module(x), rtol=tolerance, atol=tolerance
        )

    def test_shared_statistic(self):
        """Two weights for one norm: it is computed once."""
        module = Written(
            lambda x, w: (lambda n: (n * w, n * (w + 1)))(
                x * torch.rsqrt(mean_square(x))
            )
        )
        x = random(2, _SIZE)
        program = exported(module, x)
        self.assertEqual(fx_passes.fuse_decomposed(program).fused, 1)
        torch.testing.assert_close(program.module()(x), module(x))


class Residual(torch.nn.Module):
    """Two residual additions, each in front of a norm; the sums are needed later."""

    def __init__(self, offset: float = 0.0):
        super().__init__()
        self.norms = torch.nn.ModuleList(
            arn.RMSNorm(_SIZE, weight_offset=offset) for _ in range(2)
        )
        self.linear = torch.nn.Linear(_SIZE, _SIZE)

    def forward(self, x, residual):
        total = x + residual
        other = self.linear(self.norms[0](total)) + total
        return self.norms[1](other), other


class AddTest(parameterized.TestCase):
    @parameterized.parameters(0.0, 1.0)
    def test_additions_are_joined(self, offset):
        module = Residual(offset).eval()
        inputs = (random(2, 3, _SIZE), torch.ones(2, 3, _SIZE))
        program = torch.export.export(module, inputs).run_decompositions()
        self.assertEqual(fx_passes.fuse_add(program), 2)
        self.assertEqual(fx_passes.fuse_add(program), 0)
        self.assertNotIn("custom_rms_norm", str(program.graph))
        torch.testing.assert_close(program.module()(*inputs), module(*inputs))
        model = arn.convert(module, inputs, fuse_add=True)
        self.assertEqual(
            [node.call_target for node in model.rms_norm_ops()],
            ["ai_edge_torch.add_rms_norm"] * 2,
        )
        outputs = model(*(x.numpy() for x in inputs))
        for y, expected in zip(outputs, module(*inputs), strict=True):
            # Terms of magnitude 1 may cancel in the linear layer's sums.
            np.testing.assert_allclose(
                y, expected.detach().numpy(), rtol=1e-5, atol=1e-6
            )

    @parameterized.named_parameters(
        ("broadcast", lambda x, w: arn.rms_norm(x + x[:1], w)),
        ("scaled", lambda x, w: arn.rms_norm(torch.add(x, x, alpha=2), w)),
        ("number", lambda x, w: arn.rms_norm(x + 1.0, w)),
        ("dtype", lambda x, w: arn.rms_norm(x + x.half(), w)),
        # The weight depends on the sum, and something between needs the sum, too.
        (
            "order",
            lambda x, w: (lambda t: arn.rms_norm(t, t.exp()[0, 0] * w))(x + x),
        ),
    )
    def test_others_are_left_alone(self, function):
        program = exported(Written(function), random(2, 3, _SIZE))
        before = str(program.graph)
        self.assertEqual(fx_passes.fuse_add(program), 0)
        self.assertEqual(str(program.graph), before)


class ConvertTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("torch", lambda: torch.nn.RMSNorm(_SIZE, eps=1e-5)),
        ("generative", lambda: normalization.RMSNorm(_SIZE, zero_centered_gamma=True)),
        ("llama", lambda: modeling_llama.LlamaRMSNorm(_SIZE)),
        ("gemma3", lambda: modeling_gemma3.Gemma3RMSNorm(_SIZE)),
        ("gemma4", lambda: modeling_gemma4.Gemma4RMSNorm(_SIZE, with_scale=False)),
        (
            "two_weights",
            lambda: normalization.RMSNorm(_SIZE, with_scale=True, scale_shift=3.0),
        ),
    )
    def test_one_operator(self, make):
        module = make().eval()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
        x = random(2, 3, _SIZE)
        model = arn.convert(module, (x,), fuse_decomposed=True)
        (subgraph,) = flatbuffer.read(bytes(model)).subgraphs
        self.assertLen(subgraph.operators, 1)
        self.assertLen(model.rms_norm_ops(), 1)
        (norm,) = arn.convert(module, (x,)).rms_norm_ops()
        self.assertEqual(norm.encoding, "decomposed")
        np.testing.assert_allclose(
            model(x.numpy()), module(x).detach().numpy(), rtol=4e-6, atol=1e-6
        )

    @parameterized.parameters("stablehlo_custom_call", "custom", "composite")
    def test_composites(self, encoding):
        """litert-torch's layer marks its inside by default, as a ModelConfig has it."""
        module = torch.nn.Sequential(
            normalization.RMSNorm(_SIZE, enable_hlfb=True),
            torch.nn.RMSNorm(_SIZE, eps=1e-5),
        ).eval()
        x = random(2, 3, _SIZE)
        model = arn.convert(module, (x,), fuse_decomposed=True, encoding=encoding)
        self.assertEqual(
            [n.encoding.value for n in model.rms_norm_ops()], [encoding] * 2
        )
        np.testing.assert_allclose(
            model(x.numpy()), module(x).detach().numpy(), rtol=4e-6, atol=1e-6
        )

    @parameterized.named_parameters(
        ("functional", _FORMULAS["functional"]),
        ("full_like", _FORMULAS["full_like"]),
        ("sliced", _FORMULAS["sliced"]),
        *(
            (name, case.torch)
            for name, case in _CASES.items()
            if name in ("einsum", "squared_vector_norm", "sum_over_n", "range_safe")
            or name in ("weight_over_rms", "weighted_x_over_rms", "weight_expanded")
        ),
    )
    def test_dynamic_rows(self, function):
        """litert-torch 0.10 converts no decomposed norm over dynamic dimensions."""
        module = Written(function).eval()
        model = arn.convert(
            module,
            (random(3, 2, _SIZE),),
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            fuse_decomposed=True,
        )
        self.assertLen(model.rms_norm_ops(), 1)
        x = random(7, 2, _SIZE)
        np.testing.assert_allclose(
            model(x.numpy()), module(x).detach().numpy(), rtol=4e-6, atol=1e-7
        )

    def test_names_and_signatures_stay(self):
        class Block(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.before = torch.nn.RMSNorm(_SIZE, eps=1e-5)
                self.linear = torch.nn.Linear(_SIZE, _SIZE)

            def forward(self, x):
                normalized = self.before(x)
                return {"y": self.linear(normalized), "normalized": normalized}

        module = Block().eval()
        converter = arn.signature("prefill", module, (random(4, _SIZE),))
        converter.signature("decode", module, (random(1, _SIZE),))
        model = converter.convert(fuse_decomposed=True, encoding="custom")
        self.assertLen(model.rms_norm_ops(), 2)
        outputs = model(random(1, _SIZE).numpy(), signature_name="decode")
        expected = module(random(1, _SIZE))
        self.assertEqual(set(outputs), set(expected))
        for name, value in outputs.items():
            np.testing.assert_allclose(
                value, expected[name].detach().numpy(), rtol=1e-5, atol=1e-5
            )

    def test_v2_is_rejected(self):
        with self.assertRaisesRegex(ValueError, "use_v2=True"):
            arn.convert(
                torch.nn.RMSNorm(_SIZE).eval(),
                (random(2, _SIZE),),
                fuse_decomposed=True,
                use_v2=True,
            )


if __name__ == "__main__":
    absltest.main()
