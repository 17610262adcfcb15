"""Every case of the table, in everything that recognizes RMSNorm: they must agree."""

import numpy as np
import torch
from absl.testing import absltest, parameterized
from ai_edge_litert import interpreter as litert

import ai_edge_rms_norm as arn
from ai_edge_rms_norm import pattern
from ai_edge_rms_norm.conversion import fx_passes
from ai_edge_rms_norm.tflite import encoding, flatbuffer
from testing.tflite_builder import Builder
from tests import pattern_cases
from tests.pattern_cases import Case

_ALL = {case.name: case for case in (*pattern_cases.NORMS, *pattern_cases.OTHERS)}
_CHAINS = {name: (case,) for name, case in _ALL.items() if case.is_chain}
_COMPOSITES = {name: (case,) for name, case in _ALL.items() if case.is_composite}
_RUN_CHAINS = {name: row for name, row in _CHAINS.items() if row[0].runs}
_RUN_COMPOSITES = {name: row for name, row in _COMPOSITES.items() if row[0].runs}
_TORCH = {name: (case,) for name, case in _ALL.items() if case.torch}


def _named(cases):
    return parameterized.named_parameters(*((k, *v) for k, v in cases.items()))


def _random(case: Case) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal(case.shape)
    return (0.03 * x).astype(case.dtype)  # So small that epsilon matters.


def _run(content: bytes, x: np.ndarray, kind=litert.Interpreter, **options):
    """Returns the interpreter after a run, and its outputs."""
    interpreter = kind(
        model_content=content,
        # Without XNNPACK a delegate in the plan is the one for RMSNorm.
        experimental_op_resolver_type=(
            litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
        **options,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    details = interpreter.get_output_details()
    return interpreter, [interpreter.get_tensor(d["index"]) for d in details]


class PatternTest(parameterized.TestCase):
    def _assert_same(self, case, actual, expected):
        tolerance = 1e-3 if case.dtype == np.float16 else 4e-6
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance / 10)

    @_named(_CHAINS)
    def test_fuse(self, case):
        content = case.chain()
        model, report = arn.fuse(content)
        if case.reason is not None:
            self.assertEmpty(report.fused)
            self.assertEmpty(model.rms_norm_ops())
            self.assertRegex(
                "; ".join(skipped.reason for skipped in report.skipped), case.reason
            )
            return
        self.assertEmpty(report.skipped)
        (fused,) = report.fused
        self.assertEqual(fused.epsilon, case.epsilon)
        self.assertEqual(fused.hidden_size, pattern_cases.SIZE)
        self.assertEqual(fused.has_weight, case.has_weight)
        self._assert_same(
            case,
            _run(bytes(model), _random(case), arn.Interpreter)[1],
            _run(content, _random(case))[1],
        )

    @_named(_COMPOSITES)
    def test_translate(self, case):
        content = case.composite()
        translated = arn.translate(content, "custom")
        norms = encoding.find_ops(flatbuffer.read(translated))
        is_norm = case.reason is None
        self.assertLen(norms, int(is_norm), arn.fuse(content)[1].skipped)
        if is_norm:
            self.assertEqual(norms[0].encoding, "custom")
            self._assert_same(
                case,
                _run(translated, _random(case), arn.Interpreter)[1],
                _run(content, _random(case))[1],
            )
        else:
            self.assertEqual(translated, content)
            (skipped,) = arn.fuse(content)[1].skipped
            self.assertRegex(skipped.reason, case.reason)

    def _check_delegate(self, case, content, **options):
        expected = _run(content, _random(case))[1]
        fused, actual = _run(content, _random(case), arn.Interpreter, **options)
        operators = [node["op_name"] for node in fused._get_ops_details()]
        delegated = int(case.reason is None)
        self.assertEqual(operators.count("DELEGATE"), delegated, operators)
        self._assert_same(case, actual, expected)

    @_named(_RUN_CHAINS)
    def test_delegate(self, case):
        self._check_delegate(case, case.chain(), fuse_decomposed=True)

    @_named(_RUN_COMPOSITES)
    def test_delegate_of_composites(self, case):
        if case.rows:
            self._check_delegate(case, case.composite())
            return
        # The interface of a delegate does not tell x and a weight of one shape apart,
        # so the decomposition is claimed. Where squares overflow, its operators give 0.
        x = 1e25 * _random(case)
        (y,) = _run(case.composite(), x, arn.Interpreter)[1]
        expected = x / np.sqrt(np.mean(np.float64(x) ** 2)) * pattern_cases.WEIGHT
        np.testing.assert_allclose(y, expected, rtol=1e-5)

    def test_two_norms(self):
        """Casts between norms belong to one of them; a widened result to none."""
        b = Builder()
        x = y = b.input((2, pattern_cases.SIZE), np.float16)
        for _ in range(2):
            wide = b("CAST", y, dtype=np.float32)
            wide = pattern_cases.norm(b, wide, b.constant(pattern_cases.WEIGHT))
            y = b("CAST", wide, dtype=np.float16)
        content = b.content(b("CAST", y, dtype=np.float32))
        x = np.random.default_rng(0).standard_normal((2, pattern_cases.SIZE))
        x = x.astype(np.float16)
        (expected,) = _run(content, x)[1]
        model, report = arn.fuse(content)
        self.assertLen(report.fused, 2)
        for fused in (
            _run(bytes(model), x, arn.Interpreter),
            _run(content, x, arn.Interpreter, fuse_decomposed=True),
        ):
            operators = [node["op_name"] for node in fused[0]._get_ops_details()]
            self.assertEqual(
                [operators.count("DELEGATE"), operators[-2:]], [1, ["CAST", "DELEGATE"]]
            )
            np.testing.assert_allclose(fused[1][0], expected, rtol=2e-3)
            # As a float16 would be.
            np.testing.assert_array_equal(fused[1][0], np.float16(fused[1][0]))

    @_named(_TORCH)
    def test_torch(self, case):
        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.tensor(pattern_cases.WEIGHT))

            def forward(self, x):
                return case.torch(x, self.weight)

        x = torch.from_numpy(_random(case))
        shapes = ({0: torch.export.Dim("rows")},) if case.dynamic else None
        module = Module().eval()
        program = torch.export.export(module, (x,), dynamic_shapes=shapes)
        program = program.run_decompositions()
        report = fx_passes.fuse_decomposed(program)
        if case.reason is not None:
            self.assertEqual(report.fused, 0)
            reasons = "; ".join(skipped.reason for skipped in report.skipped)
            self.assertRegex(reasons, case.reason)
            return
        self.assertEqual((report.fused, report.skipped), (1, ()))
        (node,) = (n for n in program.graph.nodes if "custom_rms" in str(n.target))
        self.assertEqual(node.args[2], case.epsilon)
        self.assertEqual(node.args[1] is not None, case.has_weight)
        tolerance = 2 * torch.finfo(x.dtype).eps
        torch.testing.assert_close(
            program.module()(x), module(x), rtol=8 * tolerance, atol=tolerance
        )


class EpsilonOfRootTest(parameterized.TestCase):
    @parameterized.parameters(1e-6, 1e-5, 1e-12, 1e-30, 1e30, 0.5)
    def test_shortest_decimal(self, epsilon):
        root = float(np.float32(np.sqrt(epsilon)))
        self.assertEqual(pattern.epsilon_of_root(root), epsilon)

    def test_name(self):
        root = float(np.float32(np.sqrt(1.00000001e-6)))
        name = "norm/sqrt_epsilon=1.00000001e-06"
        self.assertEqual(pattern.epsilon_of_root(root, name), 1.00000001e-6)
        # A name of another number says nothing.
        for other in ("norm/sqrt_epsilon=2e-06", "x/sqrt_epsilon=nan", "1e-06"):
            self.assertEqual(pattern.epsilon_of_root(root, other), 1e-6)


if __name__ == "__main__":
    absltest.main()
