"""Causal attention with grouped key-value heads and rotary positions.

Shapes: B batch, T new positions, S positions attended to, H hidden size, N query heads, K
key-value heads, D head size. The four projections stay apart: fused they are no faster on a CPU,
and apart they carry the names that checkpoints, adapters and quantisers use.

Source: Vaswani et al. 2017, arXiv 1706.03762; grouped heads: Ainslie et al. 2023, arXiv 2305.13245.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.models.config import AttentionConfig, ModelConfig
from lmworks.models.initialization import INIT_STD, init_linear
from lmworks.models.positions import apply_rotary, shared_rotary

if TYPE_CHECKING:
    from lmworks.models.cache import LayerCache


class Attention(nn.Module):
    """Every position looks at itself and those before it."""

    def __init__(self, config: AttentionConfig, model: ModelConfig) -> None:
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        hidden, bias = model.hidden_size, config.bias
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, query_size, bias=bias)
        self.k_proj = nn.Linear(hidden, key_size, bias=bias)
        self.v_proj = nn.Linear(hidden, key_size, bias=bias)
        self.o_proj = nn.Linear(query_size, hidden, bias=bias)
        self.rotary = shared_rotary(config.rope, config.head_dim)

    def forward(self, x: torch.Tensor, cache: LayerCache | None = None) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        q = self._heads(self.q_proj(x), self.num_attention_heads)  # (B, N, T, D)
        k = self._heads(self.k_proj(x), self.num_key_value_heads)  # (B, K, T, D)
        v = self._heads(self.v_proj(x), self.num_key_value_heads)
        mask, is_causal, num_new = None, True, x.shape[1]
        if cache is None:
            cos, sin = (t[:num_new] for t in self.rotary.tables(num_new, x.device))
        else:
            cos, sin = cache.rotary(self.rotary)
            mask, is_causal = cache.mask, cache.is_causal
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, K, S, D)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=is_causal,
            enable_gqa=self.num_attention_heads != self.num_key_value_heads,
        )
        out: torch.Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: torch.Tensor, num_heads: int) -> torch.Tensor:
        return x.view(*x.shape[:2], num_heads, self.head_dim).transpose(1, 2)

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Normal weights, zero biases."""
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            init_linear(projection, generator, INIT_STD)
        init_linear(self.o_proj, generator, output_std)
