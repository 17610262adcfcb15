"""Replacing the norms of PyTorch models: all that are RMSNorm, and nothing else."""

import copy

import torch
import transformers
from absl.testing import absltest, parameterized
from litert_torch.generative.layers import normalization
from transformers.models.gemma import modeling_gemma
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.phi3 import modeling_phi3
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.smollm3 import modeling_smollm3
from transformers.models.t5 import modeling_t5

import ai_edge_rms_norm as arn

_SIZE = 24


def randomized(module, dtype=torch.float32):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.to(dtype).eval()


def inputs(dtype=torch.float32):
    x = torch.randn(2, 3, _SIZE, generator=torch.Generator().manual_seed(1))
    return (x * torch.tensor([1e-3, 1.0]).reshape(2, 1, 1)).to(dtype)


class Llama(torch.nn.Module):
    """What Llama computes, under another name and with a switch."""

    def __init__(self, change=None):
        super().__init__()
        self.gamma = torch.nn.Parameter(torch.ones(_SIZE))
        self.variance_epsilon = 1e-5
        self.change = change

    def forward(self, hidden):
        x = hidden.float()
        mean = x.mean(-1, keepdim=True) if self.change == "center" else 0
        mean_square = (x - mean).pow(2).mean(-1, keepdim=True)
        if self.change == "epsilon outside":
            y = x / (mean_square.sqrt() + self.variance_epsilon)
        else:
            y = x * torch.rsqrt(mean_square + self.variance_epsilon)
        if self.change == "clamp":
            y = y.clamp(-2, 2)
        if self.change == "bias":
            y = y + 1e-2
        return (self.gamma * y).to(hidden.dtype)


class StrangeRMSNorm(Llama):
    pass


class TwoArgumentRMSNorm(Llama):
    def forward(self, hidden, gate=None):
        return super().forward(hidden)


_NORMS = (
    ("torch", lambda: torch.nn.RMSNorm(_SIZE, eps=1e-5), 1e-5, 0.0),
    ("torch_default", lambda: torch.nn.RMSNorm(_SIZE), 2**-23, 0.0),
    ("generative", lambda: normalization.RMSNorm(_SIZE), 1e-6, 0.0),
    (
        "generative_zero_centered",
        lambda: normalization.RMSNorm(_SIZE, zero_centered_gamma=True),
        1e-6,
        1.0,
    ),
    (
        "generative_with_scale",
        lambda: normalization.RMSNorm(
            _SIZE, with_scale=True, scale_shift=2.5, zero_centered_gamma=True
        ),
        1e-6,
        1.0,
    ),
    ("llama", lambda: modeling_llama.LlamaRMSNorm(_SIZE, eps=1e-5), 1e-5, 0.0),
    ("qwen2", lambda: modeling_qwen2.Qwen2RMSNorm(_SIZE), 1e-6, 0.0),
    ("qwen3", lambda: modeling_qwen3.Qwen3RMSNorm(_SIZE), 1e-6, 0.0),
    ("mistral", lambda: modeling_mistral.MistralRMSNorm(_SIZE), 1e-6, 0.0),
    ("phi3", lambda: modeling_phi3.Phi3RMSNorm(_SIZE), 1e-6, 0.0),
    ("smollm3", lambda: modeling_smollm3.SmolLM3RMSNorm(_SIZE), 1e-6, 0.0),
    ("gemma", lambda: modeling_gemma.GemmaRMSNorm(_SIZE), 1e-6, 1.0),
    ("gemma2", lambda: modeling_gemma2.Gemma2RMSNorm(_SIZE), 1e-6, 1.0),
    ("gemma3", lambda: modeling_gemma3.Gemma3RMSNorm(_SIZE), 1e-6, 1.0),
    ("gemma4", lambda: modeling_gemma4.Gemma4RMSNorm(_SIZE), 1e-6, 0.0),
    (
        "gemma4_no_weight",
        lambda: modeling_gemma4.Gemma4RMSNorm(_SIZE, with_scale=False),
        1e-6,
        0.0,
    ),
    ("t5", lambda: modeling_t5.T5LayerNorm(_SIZE), 1e-6, 0.0),
    ("other_name", Llama, 1e-5, 0.0),
)


class NormTest(parameterized.TestCase):
    @parameterized.named_parameters(*_NORMS)
    def test_replaced(self, make, epsilon, offset):
        model = torch.nn.Sequential(randomized(make()))
        (parameters, keys) = dict(model[0].named_parameters()), list(model.state_dict())
        x = inputs()
        expected = model(x)
        report = arn.replace_rms_norm(model)
        self.assertEmpty(report.skipped)
        (replaced,) = report.replaced
        self.assertEqual((replaced.name, replaced.epsilon), ("0", epsilon))
        self.assertEqual(replaced.weight_offset, offset)
        self.assertEqual(replaced.hidden_size, _SIZE if parameters else None)
        torch.testing.assert_close(model(x), expected, rtol=2e-6, atol=1e-6)
        # The parameters are the same objects, under the same names.
        after = dict(model[0].named_parameters())
        if "gamma" not in parameters:
            self.assertEqual(list(model.state_dict()), keys)
        self.assertEqual([*map(id, after.values())], [*map(id, parameters.values())])
        targets = [
            str(node.target)
            for node in torch.export.export(model, (x,)).graph.nodes
            if node.op == "call_function"
        ]
        self.assertIn("ai_edge_torch.custom_rms_norm.default", targets)
        self.assertEmpty(arn.replace_rms_norm(model).replaced)

    @parameterized.product(
        dtype=[torch.float16, torch.bfloat16], name=["llama", "gemma3", "torch"]
    )
    def test_half_precision(self, dtype, name):
        make = next(norm[1] for norm in _NORMS if norm[0] == name)
        model = torch.nn.Sequential(randomized(make(), dtype))
        x = inputs(dtype)
        expected = model(x)
        self.assertLen(arn.replace_rms_norm(model).replaced, 1)
        actual = model(x)
        self.assertEqual(actual.dtype, dtype)
        tolerance = 2 * torch.finfo(dtype).eps  # Llama rounds twice, we once.
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)

    @parameterized.parameters(torch.float16, torch.bfloat16)
    def test_default_epsilon_of_torch_in_half_precision(self, dtype):
        model = torch.nn.Sequential(torch.nn.RMSNorm(_SIZE, dtype=dtype))
        # So small that the epsilon of dtype and that of float32 differ widely.
        x = 0.001 * inputs(dtype)
        expected = model(x)
        arn.replace_rms_norm(model)
        tolerance = torch.finfo(dtype).eps
        torch.testing.assert_close(model(x), expected, rtol=tolerance, atol=tolerance)

    def test_default_epsilon_of_another_dtype(self):
        norm = torch.nn.RMSNorm(_SIZE).to(torch.float8_e4m3fn)
        (skipped,) = arn.replace_rms_norm(torch.nn.Sequential(norm)).skipped
        self.assertIn("float8_e4m3fn", skipped.reason)

    @parameterized.parameters("llama", "gemma3", "t5")
    def test_half_precision_weight_of_float32_input(self, name):
        make = next(norm[1] for norm in _NORMS if norm[0] == name)
        model = torch.nn.Sequential(randomized(make(), torch.bfloat16))
        x = inputs()
        expected = model(x).float()  # Some cast the result to the weight's dtype.
        self.assertLen(arn.replace_rms_norm(model).replaced, 1)
        tolerance = torch.finfo(torch.bfloat16).eps
        torch.testing.assert_close(model(x), expected, rtol=tolerance, atol=tolerance)

    @parameterized.parameters("center", "epsilon outside", "clamp", "bias")
    def test_what_computes_something_else(self, change):
        model = torch.nn.Sequential(StrangeRMSNorm(change), Llama(change))
        before = list(model)
        report = arn.replace_rms_norm(model)
        self.assertEmpty(report.replaced)
        # Nobody calls the second one an RMSNorm.
        (skipped,) = report.skipped
        self.assertEqual((skipped.name, skipped.type), ("0", "StrangeRMSNorm"))
        self.assertRegex(skipped.reason, "something else")
        self.assertEqual(list(model), before)

    def test_structure(self):
        hooked = torch.nn.RMSNorm(_SIZE)
        hooked.register_forward_hook(lambda *_: None)
        model = torch.nn.ModuleDict(
            {
                "gate": TwoArgumentRMSNorm(),
                "hook": hooked,
                "two": torch.nn.RMSNorm((2, _SIZE)),
                "meta": torch.nn.RMSNorm(_SIZE, device="meta"),
                "dtype": torch.nn.RMSNorm(_SIZE, elementwise_affine=False),
                "layer": torch.nn.LayerNorm(_SIZE),
                "batch": torch.nn.BatchNorm1d(_SIZE),
                "group": torch.nn.GroupNorm(2, _SIZE),
                "dropout": torch.nn.Dropout(),
            }
        )
        report = arn.replace_rms_norm(model)
        self.assertEmpty(report.replaced)
        reasons = {skipped.name: skipped.reason for skipped in report.skipped}
        self.assertEqual(set(reasons), {"gate", "hook", "two", "meta", "dtype"})
        self.assertIn("takes hidden, gate", reasons["gate"])
        self.assertIn("hooks", reasons["hook"])
        self.assertIn("[(2, 24)]", reasons["two"])
        self.assertIn("meta", reasons["meta"])
        self.assertIn("depends on the dtype", reasons["dtype"])

    def test_the_model_itself(self):
        report = arn.replace_rms_norm(torch.nn.RMSNorm(_SIZE, eps=1e-6))
        self.assertIn("the model itself", report.skipped[0].reason)
        with self.assertRaisesRegex(TypeError, "model must be a torch.nn.Module"):
            arn.replace_rms_norm(torch.ones(3))

    def test_shared_module_and_training(self):
        norm = torch.nn.RMSNorm(_SIZE, eps=1e-6)
        model = torch.nn.ModuleDict({"a": norm, "b": norm})
        self.assertLen(arn.replace_rms_norm(model).replaced, 1)
        self.assertIs(model["a"], model["b"])
        self.assertIsInstance(model["b"], arn.RMSNorm)
        self.assertTrue(model["a"].training)
        model["a"](inputs()).sum().backward()
        self.assertIsNotNone(norm.weight.grad)


def _config(kind, **kwargs):
    return kind(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=50,
        pad_token_id=0,
        **kwargs,
    )


class ModelTest(parameterized.TestCase):
    """Whole models: every norm is found, the logits stay."""

    @parameterized.named_parameters(
        # Two per layer, one at the end.
        ("llama", transformers.LlamaConfig, 5),
        ("qwen2", transformers.Qwen2Config, 5),
        ("mistral", transformers.MistralConfig, 5),
        ("phi3", transformers.Phi3Config, 5),
        # With norms of queries and keys.
        ("qwen3", transformers.Qwen3Config, 9),
        # Four per layer.
        ("gemma2", transformers.Gemma2Config, 9),
        ("gemma3", transformers.Gemma3TextConfig, 13),
    )
    def test_all_norms(self, kind, count):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(_config(kind)).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        tokens = torch.arange(12).reshape(2, 6)
        original = copy.deepcopy(model)
        report = arn.replace_rms_norm(model)
        self.assertEmpty(report.skipped)
        self.assertLen(report.replaced, count)
        left = [type(m).__name__ for m in model.modules()]
        self.assertFalse([n for n in left if "RMSNorm" in n and n != "RMSNorm"])
        self.assertEqual(list(model.state_dict()), list(original.state_dict()))
        with torch.no_grad():
            expected = original(tokens).logits
            torch.testing.assert_close(
                model(tokens).logits, expected, rtol=1e-4, atol=1e-5
            )


if __name__ == "__main__":
    absltest.main()
