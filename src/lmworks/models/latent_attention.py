"""Attention over compressed keys and values (MLA): only a small latent is kept per position.

Shapes: B batch, T new positions, S positions attended to, H hidden size, N heads, R the latent's
size, P the part of a head without positions, D the turned part, V a head's values.

A step of one position does not unfold the latents of the whole past: the matrix that makes keys of
them is applied to the query instead, and the one that makes values to what attention gathered. The
result is the same up to rounding, and the work per step falls from S R N (P + V) to S N (2 R + D).

Source: DeepSeek-V2, arXiv 2405.04434, section 2.1 and appendix C.
"""

from __future__ import annotations

import torch
from torch import nn

from lmworks.models.attention import attend
from lmworks.models.config import AttentionConfig, LatentAttentionConfig, ModelConfig, RMSNormConfig
from lmworks.models.context import Context
from lmworks.models.initialization import INIT_STD, init_linear
from lmworks.models.masks import score_mask
from lmworks.models.norms import build_norm
from lmworks.models.positions import apply_rotary, shared_rotary, turns


class LatentAttention(nn.Module):
    """(B, T, H) -> (B, T, H), causal."""

    def __init__(self, config: LatentAttentionConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden, heads = model.hidden_size, config.num_attention_heads
        norm = RMSNormConfig(eps=config.eps)
        query_size = heads * config.qk_head_dim
        self.q_proj = self.q_a_proj = self.q_a_norm = self.q_b_proj = None
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, query_size, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=config.bias)
            self.q_a_norm = build_norm(norm, config.q_lora_rank)
            self.q_b_proj = nn.Linear(config.q_lora_rank, query_size, bias=False)
        size = config.kv_lora_rank + config.qk_rope_head_dim
        self.kv_a_proj = nn.Linear(hidden, size, bias=config.bias)
        self.kv_a_norm = build_norm(norm, config.kv_lora_rank)
        size = heads * (config.qk_nope_head_dim + config.v_head_dim)
        self.kv_b_proj = nn.Linear(config.kv_lora_rank, size, bias=False)
        self.o_proj = nn.Linear(heads * config.v_head_dim, hidden, bias=config.bias)
        self.rotary = shared_rotary(config.rope, config.qk_rope_head_dim)
        self._scores = AttentionConfig(
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=config.qk_head_dim,
            rope=None,
            scale=config.scale or config.qk_head_dim**-0.5,
        )

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        config, cache, num_new = self.config, context.cache, x.shape[1]
        q_nope, q_rope = self._queries(x).split(
            [config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1
        )
        latents, rope_keys = self.kv_a_proj(x)[:, None].split(
            [config.kv_lora_rank, config.qk_rope_head_dim], dim=-1
        )
        latents = self.kv_a_norm(latents)  # (B, 1, T, R)
        if cache is None:
            cos, sin = turns(self.rotary, context, num_new, x.device)
        else:
            cos, sin = cache.rotary(self.rotary)
        q_rope, rope_keys = apply_rotary(q_rope, cos, sin), apply_rotary(rope_keys, cos, sin)
        if cache is not None:
            latents, rope_keys = cache.append(latents, rope_keys, ("latents", "rope_keys"))
        mask, is_causal = score_mask(self._scores, context, num_new, latents.shape[2], x.device)
        if cache is not None and num_new == 1:
            y = self._folded(q_nope, q_rope, latents, rope_keys, mask)
        else:
            y = self._unfolded(q_nope, q_rope, latents, rope_keys, mask, is_causal)
        joined = y.transpose(1, 2).flatten(2)
        context.note("mixer.attended", joined)
        out: torch.Tensor = self.o_proj(joined)
        return out

    def _queries(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, H) -> (B, N, T, P + D)."""
        if self.q_proj is not None:
            q = self.q_proj(x)
        else:
            assert self.q_a_proj is not None
            assert self.q_a_norm is not None
            assert self.q_b_proj is not None
            q = self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
        return q.view(*q.shape[:2], -1, self.config.qk_head_dim).transpose(1, 2)

    def _unfolded(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latents: torch.Tensor,
        rope_keys: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool,
    ) -> torch.Tensor:
        """Keys and values of every head from the latents (B, 1, S, R) -> (B, N, T, V)."""
        config = self.config
        batch, _, length, _ = latents.shape
        both = self.kv_b_proj(latents[:, 0]).view(batch, length, config.num_attention_heads, -1)
        k_nope, v = both.transpose(1, 2).split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)
        k = torch.cat((k_nope, rope_keys.expand(-1, config.num_attention_heads, -1, -1)), dim=-1)
        q = torch.cat((q_nope, q_rope), dim=-1)
        return attend(q, k, v, self._scores, mask=mask, is_causal=is_causal)

    def _folded(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latents: torch.Tensor,
        rope_keys: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """The same without unfolding: all heads look at the latents themselves."""
        config = self.config
        weight = self.kv_b_proj.weight.view(config.num_attention_heads, -1, config.kv_lora_rank)
        to_keys, to_values = weight.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        q = torch.cat((q_nope @ to_keys, q_rope), dim=-1)  # (B, N, T, R + D)
        k = torch.cat((latents, rope_keys), dim=-1)
        gathered = attend(q, k, latents, self._scores, mask=mask, is_causal=False)
        return gathered @ to_values.mT

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Normal weights, zero biases; the norms' scales are the model's to reset."""
        for name in ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj"):
            projection = getattr(self, name)
            if projection is not None:
                init_linear(projection, generator, INIT_STD)
        init_linear(self.o_proj, generator, output_std)
