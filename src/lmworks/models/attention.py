"""Attention with grouped key-value heads: over the sequence itself, or across to an encoder's.

Shapes: B batch, T new positions, S positions attended to, H hidden size, N query heads, K
key-value heads, D head size. The four projections stay apart: fused they are no faster on a CPU,
and apart they carry the names that checkpoints, adapters and quantisers use.

Source: Vaswani et al. 2017, arXiv 1706.03762; grouped heads: Ainslie et al. 2023, arXiv 2305.13245.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.attention_patterns import build_pattern
from lmworks.models.config import AttentionConfig, ModelConfig
from lmworks.models.context import Context
from lmworks.models.documents import Bucket
from lmworks.models.initialization import INIT_STD, init_linear
from lmworks.models.masks import cross_mask, score_mask
from lmworks.models.norms import build_norm
from lmworks.models.positions import apply_rotary, shared_rotary, turns


class Attention(nn.Module):
    """Every position looks at those that the config lets it see."""

    def __init__(
        self, config: AttentionConfig, model: ModelConfig, source_size: int | None = None
    ) -> None:
        super().__init__()
        self.config = config
        hidden = model.hidden_size
        source = source_size or hidden
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, query_size, bias="q" in config.bias)
        self.k_proj = nn.Linear(source, key_size, bias="k" in config.bias)
        self.v_proj = nn.Linear(source, key_size, bias="v" in config.bias)
        self.o_proj = nn.Linear(query_size, hidden, bias="o" in config.bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm is not None:
            whole = config.qk_norm_over == "all"
            self.q_norm = build_norm(config.qk_norm, query_size if whole else config.head_dim)
            self.k_norm = build_norm(config.qk_norm, key_size if whole else config.head_dim)
        self.pattern = build_pattern(config, model)
        self.prefix: nn.Module | None = None  # of an adapter: keys and values before all others
        self.rotary = None
        if config.rope is not None:
            self.rotary = shared_rotary(config.rope, config.rope.rotary_dim(config.head_dim))

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        q, k, v = self.queries(x), self.keys(x), self.values(x)
        cache, rotary = context.cache, self.rotary
        if cache is None:
            if rotary is not None:
                cos, sin = turns(rotary, context, x.shape[1], x.device)
                q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        elif rotary is not None and rotary.grows:
            # Kept unturned: see `positions`.
            k, v = cache.append(k, v)
            q = apply_rotary(q, *cache.rotary(rotary))
            k = apply_rotary(k, *cache.key_rotary(rotary))
        else:
            if rotary is not None:
                cos, sin = cache.rotary(rotary)
                q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
            if self._reads_pages(q, context):
                return self._output(cache.attend(q, k, v, self.config), context)
            k, v = cache.append(k, v)  # (B, K, S, D)
        context.note("mixer.q", q)
        context.note("mixer.k", k)
        context.note("mixer.v", v)
        return self._output(self._attended(x, q, k, v, context), context)

    def _reads_pages(self, q: torch.Tensor, context: Context) -> bool:
        """Whether the cache can do this attention where its pages lie."""
        return (
            context.cache is not None
            and context.record is None
            and context.bias is None
            and context.padding is None
            and self.prefix is None
            and context.cache.attends(q, self.config)
        )

    def _attended(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, context: Context
    ) -> torch.Tensor:
        """What each query gathers, (B, N, T, D)."""
        if context.apart is not None and context.padding is None:
            return self._attended_apart(q, k, v, context)
        y = None if self.pattern is None else self.pattern(x, q, k, v, context)
        if y is None:
            mask, is_causal = score_mask(self.config, context, q.shape[2], k.shape[2], q.device)
            if self.prefix is not None:
                k, v, mask, is_causal = self.prefix(k, v, mask, is_causal, context)
            y = attend(q, k, v, self.config, mask=mask, is_causal=is_causal)
        return y

    def _attended_apart(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, context: Context
    ) -> torch.Tensor:
        """The same of packed rows, document by document."""

        def read(bucket: Bucket, *rows: torch.Tensor) -> torch.Tensor:
            alone = context.of_bucket(bucket)
            q, k, v = (part.transpose(1, 2) for part in rows)
            return self._attended(q, q, k, v, alone).transpose(1, 2)

        assert context.apart is not None
        return context.apart.apart(read, *(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, H) -> (B, N, T, D), normed, before positions."""
        return self._heads(self.q_proj(x), self.q_norm)

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, H) -> (B, K, S, D), normed, before positions."""
        return self._heads(self.k_proj(x), self.k_norm)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, H) -> (B, K, S, D)."""
        return self._heads(self.v_proj(x), None)

    def _heads(self, x: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        whole = self.config.qk_norm_over == "all"
        if norm is not None and whole:
            x = norm(x)
        x = x.view(*x.shape[:2], -1, self.config.head_dim)
        if norm is not None and not whole:
            x = norm(x)
        return x.transpose(1, 2)

    def _output(self, y: torch.Tensor, context: Context) -> torch.Tensor:
        joined = y.transpose(1, 2).flatten(2)
        context.note("mixer.attended", joined)
        out: torch.Tensor = self.o_proj(joined)
        return out

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Normal weights, zero biases."""
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            init_linear(projection, generator, INIT_STD)
        init_linear(self.o_proj, generator, output_std)
        if self.pattern is not None:
            self.pattern.reset_parameters(generator)


class CrossAttention(Attention):
    """Queries of the decoder look at all of the encoder's states."""

    def __init__(self, config: AttentionConfig, model: ModelConfig) -> None:
        assert model.encoder is not None  # ModelConfig saw to it
        super().__init__(config, model, model.encoder.hidden_size)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        encoded = context.encoded
        if encoded is None:
            raise UserError(
                "the decoder looks at what its encoder read: give encoded=model.encode(...)"
            )
        k, v = encoded.keys_values(
            context.layer, lambda: (self.keys(encoded.states), self.values(encoded.states))
        )
        y = attend(self.queries(x), k, v, self.config, mask=cross_mask(encoded), is_causal=False)
        return self._output(y, context)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    config: AttentionConfig,
    *,
    mask: torch.Tensor | None,
    is_causal: bool,
) -> torch.Tensor:
    """q (B, N, T, D), k and v (B, K, S, D) -> (B, N, T, D).

    Args:
        mask: added to the scores, broadcastable to (B, N, T, S), or None.
        is_causal: T == S, and each position sees those up to itself; there is no mask then.
    """
    if config.softcap is not None:
        return _attend_capped(q, k, v, config, mask, is_causal)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        # A mask of another type is read as if it were of the queries', and nothing is said.
        attn_mask=None if mask is None else mask.to(q.dtype),
        is_causal=is_causal,
        scale=config.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def attention_weights(
    q: torch.Tensor, k: torch.Tensor, config: AttentionConfig, mask: torch.Tensor | None
) -> torch.Tensor:
    """The weights themselves, (B, N, T, S), which the fused kernel never holds."""
    scale = config.scale or q.shape[-1] ** -0.5
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2) * scale
    if config.softcap is not None:
        scores = torch.tanh(scores / config.softcap) * config.softcap
    return (scores if mask is None else scores + mask).softmax(dim=-1)


def _attend_capped(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    config: AttentionConfig,
    mask: torch.Tensor | None,
    is_causal: bool,
) -> torch.Tensor:
    if is_causal:
        later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        mask = torch.zeros(later.shape, device=q.device).masked_fill_(later, -torch.inf)
    weights = attention_weights(q, k, config, mask)
    return weights @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
