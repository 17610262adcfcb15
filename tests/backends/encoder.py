"""An encoder like EmbeddingGemma's: 13 RMSNorms, and one channel with outliers."""

import pathlib
import tempfile

import litert_torch
import numpy as np
import torch

_LAYERS = 3
_HEADS = 4
_WIDTH = 128
_INNER = 256
TOKENS = 8
# In EmbeddingGemma a few channels of the residual stream are far above the others.
_OUTLIER = 20.0


class _Norm(torch.nn.Module):
    """Gemma's RMSNorm: mean of squares, rsqrt, scale 1 + w."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(0.1 * torch.randn(_WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return y * (1.0 + self.weight)


class _Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = torch.nn.ModuleList(_Norm() for _ in range(4))
        self.qkv = torch.nn.Linear(_WIDTH, 3 * _WIDTH, bias=False)
        self.out = torch.nn.Linear(_WIDTH, _WIDTH, bias=False)
        self.gate_up = torch.nn.Linear(_WIDTH, 2 * _INNER, bias=False)
        self.down = torch.nn.Linear(_INNER, _WIDTH, bias=False)

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        heads = (TOKENS, _HEADS, _WIDTH // _HEADS)
        q, k, v = (part.view(heads) for part in self.qkv(x).chunk(3, dim=-1))
        scores = torch.einsum("qhd,khd->hqk", q, k) * heads[-1] ** -0.5
        mixed = torch.einsum("hqk,khd->qhd", torch.softmax(scores, dim=-1), v)
        return self.out(mixed.reshape(TOKENS, _WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.norms[1](self._attention(self.norms[0](x)))
        gate, up = self.gate_up(self.norms[2](x)).chunk(2, dim=-1)
        return x + self.norms[3](self.down(torch.nn.functional.gelu(gate) * up))


class Encoder(torch.nn.Module):
    """x of shape [TOKENS, width] to one embedding per token; 13 norms."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(_Layer() for _ in range(_LAYERS))
        self.norm = _Norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


NORMS = 4 * _LAYERS + 1


def inputs(scale: float) -> np.ndarray:
    """Returns scale * N(0, 1), one channel 20 times as large, in float32."""
    x = np.random.default_rng(0).standard_normal((TOKENS, _WIDTH))
    x[:, 5] *= _OUTLIER
    return (scale * x).astype(np.float32)


def reference(encoder: Encoder, x: np.ndarray) -> np.ndarray:
    """Returns the embeddings computed in float64."""
    with torch.no_grad():
        double = torch.from_numpy(x).double()
        return _double(encoder)(double).numpy()


def _double(encoder: Encoder) -> Encoder:
    copy = Encoder().double()
    copy.load_state_dict(encoder.state_dict())
    return copy


def cosine(y: np.ndarray, expected: np.ndarray) -> float:
    """Returns the smallest cosine between the embeddings of a token; NaN stays NaN."""
    y = y.astype(np.float64)
    products = (y * expected).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = np.linalg.norm(y, axis=-1) * np.linalg.norm(expected, axis=-1)
        return float((products / lengths).min())


def convert(encoder: Encoder) -> bytes:
    """Returns the encoder as a .tflite whose norms litert-torch has decomposed."""
    model = litert_torch.convert(encoder, (torch.from_numpy(inputs(1.0)),))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "encoder.tflite")
        model.export(str(path))
        return path.read_bytes()
