"""Replacing the norms of PyTorch models: all that are RMSNorm, and nothing else."""

import copy
import io
import threading

import numpy as np
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
    """The norm of Llama, under another name and with a switch."""

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
    (
        "generative_composite",
        lambda: normalization.RMSNorm(_SIZE, with_scale=True, enable_hlfb=True),
        1e-6,
        0.0,
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

    @parameterized.parameters(
        # name, x, weight, result
        ("llama", "bfloat16", "float32", "float32"),
        ("llama", "float16", "bfloat16", "float32"),
        ("gemma3", "float32", "bfloat16", "float32"),
        ("gemma3", "bfloat16", "float64", "bfloat16"),
        ("t5", "float32", "float16", "float16"),
        ("t5", "bfloat16", "float32", "float32"),
        ("generative", "bfloat16", "bfloat16", "float32"),
        ("torch", "float16", "float32", "float16"),
    )
    def test_dtype_of_the_result(self, name, x_dtype, weight_dtype, result):
        make = next(norm[1] for norm in _NORMS if norm[0] == name)
        norm = make()
        model = torch.nn.Sequential(randomized(norm, getattr(torch, weight_dtype)))
        x = inputs(getattr(torch, x_dtype))
        expected = model(x)
        self.assertEqual(expected.dtype, getattr(torch, result))  # It is as stated.
        self.assertLen(arn.replace_rms_norm(model).replaced, 1)
        for run in (model, torch.export.export(model, (x,)).module()):
            actual = run(x)
            self.assertEqual(actual.dtype, expected.dtype)
            half = torch.finfo(torch.bfloat16).eps
            torch.testing.assert_close(actual, expected, rtol=half, atol=half)
        with torch.autocast("cpu", torch.bfloat16):
            self.assertEqual(model(x).dtype, norm(x).dtype)

    def test_t5_in_half_precision(self):
        # Its dense layer stays in float32, the norm gets float32 and returns half.
        config = transformers.T5Config(
            vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=2
        )
        model = transformers.T5EncoderModel(config).eval().to(torch.bfloat16)
        for name, module in model.named_modules():
            if name.endswith(".wo"):
                module.float()
        tokens = torch.arange(6)[None]
        expected = model(tokens).last_hidden_state
        self.assertLen(arn.replace_rms_norm(model).replaced, 5)
        actual = model(tokens).last_hidden_state
        self.assertEqual(actual.dtype, expected.dtype)
        torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05)

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
                "layer": torch.nn.LayerNorm(_SIZE),
                "batch": torch.nn.BatchNorm1d(_SIZE),
                "group": torch.nn.GroupNorm(2, _SIZE),
                "dropout": torch.nn.Dropout(),
            }
        )
        report = arn.replace_rms_norm(model)
        self.assertEmpty(report.replaced)
        reasons = {skipped.name: skipped.reason for skipped in report.skipped}
        self.assertEqual(set(reasons), {"gate", "hook", "two"})
        self.assertIn("takes hidden, gate", reasons["gate"])
        self.assertIn("hooks", reasons["hook"])
        self.assertIn("[2, 24]", reasons["two"])

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


def rms(x, epsilon=1e-6):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)


class Norm(torch.nn.Module):
    """RMSNorm whose forward is a function of the module and x."""

    def __init__(self, function, size=_SIZE, **attributes):
        super().__init__()
        if size is not None:
            self.weight = torch.nn.Parameter(torch.ones(size))
        for name, value in attributes.items():
            setattr(self, name, value)
        self.function = function

    def forward(self, hidden):
        return self.function(self, hidden)


def channel_first(self, x):
    if x.dim() != 4:
        return rms(x) * self.weight
    return (rms(x.movedim(1, -1)) * self.weight).movedim(-1, 1)


def with_changed_input(self, x):
    x.add_(1)
    return rms(x)


def with_cache(self, x):
    self.cache = x
    return rms(x)


def with_list(self, x):
    self.list.append(x)
    return rms(x)


class ProofTest(parameterized.TestCase):
    """Cases that a measurement on one shape would not see."""

    @parameterized.named_parameters(
        ("channel_first", channel_first, _SIZE, "cannot be traced"),
        (
            "heads",
            lambda self, x: rms(x.unflatten(-1, (-1, 64))).flatten(-2),
            None,
            r"shape \[any, any, 24\].* sizes \[-1, 64\]",
        ),
        (
            "heads_with_weight",
            lambda self, x: (rms(x.unflatten(-1, (-1, _SIZE))) * self.weight).flatten(
                -2
            ),
            _SIZE,
            "view",
        ),
        ("one_gain", lambda self, x: rms(x) * self.weight, 1, r"takes .* \[3, 2\]"),
        (
            "training",
            lambda self, x: rms(x) * (self.weight if self.training else 1),
            _SIZE,
            "its weight is .* training",
        ),
        (
            "rows",
            lambda self, x: x if x.shape[0] == 17 else rms(x) * self.weight,
            _SIZE,
            "depends on the leading dimensions",
        ),
        (
            "one_row",
            lambda self, x: x if x.shape[0] == 1 else rms(x) * self.weight,
            _SIZE,
            r"shape \[1, ",
        ),
        (
            "values",
            lambda self, x: rms(x) if x.sum() > 0 else x,
            None,
            "cannot be traced",
        ),
        (
            "rank_5",
            lambda self, x: x if x.dim() == 5 else rms(x),
            None,
            r"\[any, any, any, any, 24\]",
        ),
        ("factor", lambda self, x: 2 * rms(x), None, "besides an RMSNorm: .*mul"),
        ("input", with_changed_input, None, "copy_"),
        ("cache", with_cache, None, "changes its attribute cache"),
        ("list", with_list, None, "changes its attribute list"),
        (
            "half",
            lambda self, x: rms(x.half()).type_as(x),
            None,
            "result differs from that of its replacement",
        ),
        (
            "scaled",
            lambda self, x: rms(x * self.weight),
            _SIZE,
            "something else besides an RMSNorm: .*mul",
        ),
        (
            "exponential",
            lambda self, x: rms(x) * self.weight.exp(),
            _SIZE,
            "expected its weight to be parameters plus numbers.*exp",
        ),
        (
            "dtype",
            lambda self, x: rms(x.float(), 1e-6 if x.itemsize == 4 else 1e-3),
            None,
            "its epsilon depends on the dtype",
        ),
        (
            "result",
            lambda self, x: rms(x.float()).to(torch.bfloat16),
            None,
            "dtype of its result",
        ),
    )
    def test_refused(self, function, size, reason):
        kind = type("StrangeRMSNorm", (Norm,), {})
        norm = kind(function, size, list=[])
        (skipped,) = arn.replace_rms_norm(torch.nn.Sequential(norm)).skipped
        self.assertRegex(skipped.reason, reason)
        self.assertEmpty(norm.list)
        self.assertFalse(hasattr(norm, "cache"))

    @parameterized.named_parameters(
        ("np_float32", np.float32(1e-6), 1e-6),
        ("int", 1, 1.0),
        ("tensor", torch.tensor(1e-6), 1e-6),
        ("config", type("Config", (), {"__radd__": lambda _, x: x + 1e-4})(), 1e-4),
        ("zero", 0.0, "epsilon must be finite and > 0, it is 0.0"),
        ("parameter", torch.nn.Parameter(torch.tensor(1e-6)), "epsilon.*not a scalar"),
    )
    def test_epsilon(self, value, expected):
        kind = type("EpsilonRMSNorm", (Norm,), {})
        norm = kind(lambda self, x: rms(x, self.value) * self.weight, value=value)
        model = torch.nn.Sequential(norm)
        report = arn.replace_rms_norm(model)
        if isinstance(expected, str):
            self.assertRegex(report.skipped[0].reason, expected)
        else:
            self.assertEqual(
                np.float32(report.replaced[0].epsilon), np.float32(expected)
            )
            torch.testing.assert_close(model(inputs()), norm(inputs()))

    def test_buffers(self):
        # As in Falcon-Mamba, whose forward never reads it; and one that holds epsilon.
        norm = Norm(lambda self, x: rms(x, self.epsilon), None)
        norm.register_buffer("weight", torch.zeros(1))
        norm.register_buffer("epsilon", torch.tensor(1e-5))
        model = torch.nn.Sequential(norm)
        keys = list(model.state_dict())
        (replaced,) = arn.replace_rms_norm(model).replaced
        self.assertEqual((replaced.hidden_size, replaced.epsilon), (None, 1e-5))
        self.assertEqual(list(model.state_dict()), keys)
        model.load_state_dict({keys[0]: torch.ones(1), keys[1]: torch.tensor(0.5)})
        torch.testing.assert_close(model(inputs()), rms(inputs(), 0.5))

    def test_state_of_the_model(self):
        odd = Norm(lambda self, x: rms(x) * self.weight)
        odd.lock = threading.Lock()
        odd.cached = torch.ones(2, requires_grad=True) * 2  # Cannot be deep-copied.
        model = torch.nn.ModuleList(
            [torch.nn.LazyLinear(3), odd, torch.nn.RMSNorm(_SIZE, device="meta")]
        )
        self.assertLen(arn.replace_rms_norm(model).replaced, 2)
        self.assertIs(model[1].lock, odd.lock)

    @parameterized.parameters("dtype", "device", "autocast", "inference")
    def test_state_of_the_process(self, state):
        model = torch.nn.Sequential(modeling_llama.LlamaRMSNorm(_SIZE))
        try:
            if state == "dtype":
                torch.set_default_dtype(torch.bfloat16)
            elif state == "device":
                torch.set_default_device("meta")
            with (
                torch.autocast("cpu", enabled=state == "autocast"),
                torch.inference_mode(state == "inference"),
            ):
                report = arn.replace_rms_norm(model)
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
        self.assertLen(report.replaced, 1)
        model(inputs()).sum().backward()
        self.assertIsNotNone(model[0].weight.grad)

    def test_an_exception_is_about_one_module(self):
        class BrokenRMSNorm(torch.nn.RMSNorm):
            def __getstate__(self):
                raise OSError("no state")

        model = torch.nn.Sequential(BrokenRMSNorm(_SIZE), torch.nn.RMSNorm(_SIZE))
        report = arn.replace_rms_norm(model)
        self.assertEqual([r.name for r in report.replaced], ["1"])
        self.assertIn("OSError: no state", report.skipped[0].reason)


class DropInTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("torch", lambda: torch.nn.RMSNorm(_SIZE), "x"),
        ("llama", lambda: modeling_llama.LlamaRMSNorm(_SIZE), "hidden_states"),
        ("other_name", Llama, "hidden"),
        (
            "scale",
            lambda: normalization.RMSNorm(_SIZE, with_scale=True),
            "x",
        ),
        (
            "no_weight",
            lambda: modeling_gemma4.Gemma4RMSNorm(_SIZE, with_scale=False),
            "hidden_states",
        ),
    )
    def test_drop_in(self, make, argument):
        model = torch.nn.Sequential(randomized(make()), torch.nn.Linear(_SIZE, 4))
        norm, x = model[0], inputs()
        expected = model(x)
        self.assertLen(arn.replace_rms_norm(model).replaced, 1)
        new = model[0]
        self.assertIsInstance(new, torch.nn.RMSNorm)
        torch.testing.assert_close(new(**{argument: x}), norm(**{argument: x}))
        for name in ("eps", "variance_epsilon", "dim", "weight", "gamma", "change"):
            value = getattr(norm, name, None)
            if isinstance(value, torch.Tensor):
                self.assertIs(getattr(new, name), value, name)
            elif value is not None:
                self.assertEqual(getattr(new, name), value, name)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        traced = torch.fx.symbolic_trace(model)
        for other in (
            copy.deepcopy(model),
            torch.load(file, weights_only=False),
            traced,
            torch.jit.script(model),
            torch.jit.script(traced),
            torch.export.export(traced, (x,)).module(),
        ):
            torch.testing.assert_close(other(x), expected)


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
