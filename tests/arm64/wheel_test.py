"""The ARM64 wheel and LiteRT in an ARM64 Debian, on models converted here."""

import pathlib
import tempfile
import unittest

import numpy as np
import torch
from absl import flags
from absl.testing import absltest

import ai_edge_rms_norm as arn
from testing import transformer
from tests import wheel_platform
from tests.arm64 import emulation

_WHEEL = flags.DEFINE_string("wheel", None, "Path of the aarch64 wheel.", required=True)
_RUN_MODELS = pathlib.Path(__file__).parent / "run_models.py"


def setUpModule():
    if reason := emulation.unavailable():
        raise unittest.SkipTest(reason)


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Half(torch.nn.Module):
    """The norm of float16, in and out through float32."""

    def __init__(self):
        super().__init__()
        self.norm = arn.RMSNorm(256)

    def forward(self, x):
        return self.norm(x.half()).float()


# Module, input shape and relative tolerance; 17 has a tail in every vector width.
_MODELS = {
    "norm": (arn.RMSNorm(2048), (5, 2048), 1e-6),
    "tail": (arn.RMSNorm(17), (3, 17), 1e-6),
    "half": (Half(), (5, 256), 1e-3),
    "mlp": (transformer.MlpBlock(arn.RMSNorm, 640, 1024), (2, 16, 640), 1e-5),
    "layer": (
        transformer.DecoderLayer(arn.RMSNorm, 256, 512, 4, 1, 64),
        (1, 12, 256),
        1e-5,
    ),
}


class Arm64WheelTest(absltest.TestCase):
    def test_tag(self):
        wheel = pathlib.Path(_WHEEL.value)
        self.assertEmpty(wheel_platform.problems(wheel, "aarch64"))

    def test_runs_models(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        expected = {}
        for name, (module, shape, _) in _MODELS.items():
            x = _random(*shape)
            transformer.randomize(module)
            for encoding in arn.Encoding:
                model = arn.convert(module, (x,), encoding=encoding)
                file = folder / f"{name}.{encoding.value}"
                model.export(f"{file}.tflite")
                np.savez(f"{file}.inputs.npz", args_0=x.numpy())
                expected[file] = module(x).detach().numpy(), _MODELS[name][2]
        with tempfile.TemporaryDirectory() as site:
            # With the dependencies that pip chooses for the platform.
            emulation.install(site, _WHEEL.value)
            output = emulation.run_python(
                "/mnt/program/run_models.py",
                "/mnt/models",
                folders={
                    "models": folder,
                    "program": _RUN_MODELS.resolve().parent,
                    "site": pathlib.Path(site),
                },
                path=["site"],
            )
        self.assertIn("aarch64 neon_bf16", output)
        for file, (y, tolerance) in expected.items():
            with self.subTest(file.name), np.load(f"{file}.outputs.npz") as outputs:
                scale = tolerance * np.abs(y).max()
                np.testing.assert_allclose(outputs["output_0"], y, rtol=0, atol=scale)


if __name__ == "__main__":
    absltest.main()
