"""Imports in every order: the operators, their lowerings, and what is missing."""

import importlib
import importlib.util
import os
import pathlib
import subprocess
import sys
import textwrap
import warnings

from absl.testing import absltest, parameterized

import ai_edge_rms_norm as arn
from ai_edge_rms_norm import post_import

_CONVERT = """
class Norm(torch.nn.Module):
    def forward(self, x):
        return torch.ops.ai_edge_torch.custom_rms_norm(x, None, 1e-5)

model = litert_torch.convert(Norm(), (torch.ones(2, 4),))
assert b"ai_edge_torch.rms_norm" in model.model_content()
"""


def run(code):
    # As this test was found by Python, so is the package.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
    )


class ImportOrderTest(parameterized.TestCase):
    @parameterized.parameters(
        "import torch, ai_edge_rms_norm",
        "import ai_edge_rms_norm, torch",
        """
        import sys, ai_edge_rms_norm
        assert "torch" not in sys.modules
        import importlib.util
        importlib.util.find_spec("torch")  # As packages ask whether it is installed.
        import torch
        assert torch.__spec__.loader.get_source("torch")
        """,
    )
    def test_operators_exist(self, imports):
        result = run(
            textwrap.dedent(imports)
            + "\nprint(torch.ops.ai_edge_torch.custom_rms_norm(torch.ones(2, 4), None))"
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("1.0000", result.stdout)

    @parameterized.parameters(
        "import litert_torch, torch, ai_edge_rms_norm",
        "import ai_edge_rms_norm, litert_torch, torch",
        "import torch, ai_edge_rms_norm, litert_torch",
        "import torch, ai_edge_rms_norm as a, litert_torch; a.convert",
        "import ai_edge_rms_norm as a; a.convert; import litert_torch, torch",
    )
    def test_litert_torch_lowers(self, imports):
        if importlib.util.find_spec("litert_torch") is None:
            self.skipTest("litert_torch is not installed")
        result = run(
            "import warnings; warnings.simplefilter('error', RuntimeWarning)\n"
            + imports
            + _CONVERT
        )
        self.assertEqual(result.returncode, 0, result.stderr)

    @parameterized.parameters(
        ("torch", "RMSNorm", "ai-edge-rms-norm[torch]"),
        ("torch", "replace_rms_norm", "ai-edge-rms-norm[torch]"),
        ("torch", "convert", "ai-edge-rms-norm[convert]"),
        ("ai_edge_litert", "Interpreter", "pip install ai-edge-rms-norm installs"),
    )
    def test_says_what_installs_a_missing_package(self, package, name, remedy):
        result = run(
            f"""
            import sys
            sys.modules[{package!r}] = None
            import ai_edge_rms_norm
            ai_edge_rms_norm.{name}
            """
        )
        self.assertIn("ModuleNotFoundError", result.stderr)
        self.assertIn(f"ai_edge_rms_norm.{name} needs the package", result.stderr)
        self.assertIn(package, result.stderr)
        self.assertIn(remedy, result.stderr)

    def test_public_names(self):
        self.assertEqual(dir(arn), sorted([*arn.__all__, "__version__"]))
        for name in arn.__all__:
            self.assertIsNotNone(getattr(arn, name))


class PostImportTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        sys.path.insert(0, str(self.folder))
        self.addCleanup(sys.path.remove, str(self.folder))
        self.calls = []

    def module(self, name, code):
        path = self.folder / f"{name}.py"
        path.write_text(code)
        importlib.invalidate_caches()
        self.addCleanup(sys.modules.pop, name, None)
        return path

    def hook(self, name):
        post_import.when_imported(
            name, lambda: self.calls.append(sys.modules[name].VALUE)
        )

    def test_runs_once_after_the_import(self):
        finders = list(sys.meta_path)
        self.hook("arn_hooked")
        self.assertIsNone(importlib.util.find_spec("arn_hooked"))  # Not there yet.
        self.module("arn_hooked", "VALUE = 1")
        self.assertIsNotNone(importlib.util.find_spec("arn_hooked"))
        self.assertEqual(self.calls, [])
        module = importlib.import_module("arn_hooked")
        self.assertEqual(self.calls, [1])
        importlib.reload(module)
        self.assertEqual(self.calls, [1])
        self.assertEqual(sys.meta_path, finders)

    def test_runs_at_once_where_it_is_imported(self):
        self.module("arn_imported", "VALUE = 2")
        importlib.import_module("arn_imported")
        self.hook("arn_imported")
        self.assertEqual(self.calls, [2])

    def test_waits_for_an_import_that_succeeds(self):
        path = self.module("arn_failing", "raise OSError")
        self.hook("arn_failing")
        with self.assertRaises(OSError):
            importlib.import_module("arn_failing")
        self.assertEqual(self.calls, [])
        path.write_text("VALUE = 3 # Longer, so that no cache is taken for it.")
        importlib.import_module("arn_failing")
        self.assertEqual(self.calls, [3])

    def test_error_of_the_hook_is_a_warning(self):
        self.module("arn_harmless", "VALUE = 4")
        post_import.when_imported("arn_harmless", lambda: 1 / 0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            importlib.import_module("arn_harmless")
        (message,) = (str(w.message) for w in caught)
        self.assertIn("arn_harmless: ZeroDivisionError", message)


if __name__ == "__main__":
    absltest.main()
