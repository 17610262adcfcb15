"""Transformer blocks with exchangeable RMSNorm, for the demo, tests and benchmarks."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

NormFactory = Callable[..., nn.Module]


class DecomposedRMSNorm(nn.Module):
    """Decomposed RMSNorm, as models write it by hand."""

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        total = x if residual is None else x + residual
        y = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + self.eps)
        y = y * self.weight
        return y if residual is None else (total, y)


class MlpBlock(nn.Module):
    """RMSNorm, gated SiLU feed-forward, residual: [..., hidden] to [..., hidden]."""

    def __init__(self, norm: NormFactory, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.norm = norm(hidden_size)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class DecoderLayer(nn.Module):
    """A decoder layer with q/k norms, as in Gemma 3 and Qwen 3.

    Causal grouped-query attention without positions, then a gated feed-forward; the
    residual addition before the second norm is fused with it. [batch, sequence,
    hidden] to the same shape.
    """

    def __init__(
        self,
        norm: NormFactory,
        hidden_size: int,
        intermediate_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_size: int,
    ):
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_size = head_size
        self.attention_norm = norm(hidden_size)
        self.q_norm, self.k_norm = norm(head_size), norm(head_size)
        self.q = nn.Linear(hidden_size, num_heads * head_size, bias=False)
        self.k = nn.Linear(hidden_size, num_kv_heads * head_size, bias=False)
        self.v = nn.Linear(hidden_size, num_kv_heads * head_size, bias=False)
        self.o = nn.Linear(num_heads * head_size, hidden_size, bias=False)
        self.mlp_norm = norm(hidden_size)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, sequence, _ = x.shape
        y = self.attention_norm(x)
        q = self.q(y).view(batch, sequence, self.num_heads, self.head_size)
        k = self.k(y).view(batch, sequence, self.num_kv_heads, self.head_size)
        v = self.v(y).view(batch, sequence, self.num_kv_heads, self.head_size)
        # Grouped by key/value head; by hand, since litert-torch 0.10.0 converts
        # scaled_dot_product_attention after repeat_interleave to wrong numbers.
        groups = (batch, sequence, self.num_kv_heads, -1, self.head_size)
        q = self.q_norm(q).view(groups).permute(0, 2, 3, 1, 4)
        k = self.k_norm(k).permute(0, 2, 3, 1).unsqueeze(2)
        v = v.transpose(1, 2).unsqueeze(2)
        mask = torch.full((sequence, sequence), -torch.inf).triu(1)
        scores = torch.matmul(q, k) * self.head_size**-0.5 + mask
        y = torch.matmul(scores.softmax(-1), v).permute(0, 3, 1, 2, 4)
        y = self.o(y.reshape(batch, sequence, -1))
        total, y = self.mlp_norm(y, residual=x)
        return total + self.down(F.silu(self.gate(y)) * self.up(y))


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter a random value that keeps activations near 1.

    A norm weight of ones would be folded away by a converter, so it is random, too.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return module.eval()
