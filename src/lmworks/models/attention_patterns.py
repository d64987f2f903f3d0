"""The patterns of an attention as modules: which kernel computes it, with what weights of its own.

A pattern gets the queries, keys and values of its attention and gives the attended values, at a
cost that follows the keys that are seen. Where it can't (rows of unequal lengths in a cache, a bias
on the scores, ALiBi, rows that are told what to see) it gives None, and the attention goes through
a mask.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.models.attention_parts import mask_of
from lmworks.models.bigbird_attention import bigbird_attention, draw_random_blocks
from lmworks.models.config import BigBirdPattern, LongformerPattern, SlidingWindow
from lmworks.models.initialization import INIT_STD, init_linear
from lmworks.models.longformer_attention import QKV, longformer_attention
from lmworks.models.windowed_attention import windowed_attention

if TYPE_CHECKING:
    from lmworks.models.cache_step import LayerCache
    from lmworks.models.config import AttentionConfig, ModelConfig
    from lmworks.models.context import Context


class Pattern(Protocol):
    """Built as `Pattern(config, model)`."""

    def __call__(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, context: Context
    ) -> torch.Tensor | None:
        """x (B, T, H), q (B, N, T, D), k and v (B, K, S, D) -> (B, N, T, D) or None."""
        ...

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Draw fresh weights, if it has any."""
        ...


class Window(nn.Module):
    """Each position sees those near it."""

    def __init__(self, config: AttentionConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, context: Context
    ) -> torch.Tensor | None:
        """See `Pattern`."""
        cache, config = context.cache, self.config
        assert isinstance(config.pattern, SlidingWindow)
        even = cache is None or (cache.positions.shape[0] == 1 and not cache.sees_all)
        told = (context.bias, context.visible, context.documents, context.positions)
        if config.alibi or not even or any(value is not None for value in told):
            return None
        return windowed_attention(
            q,
            k,
            v,
            window=config.pattern.window,
            causal=config.causal,
            padding=context.padding,
            scale=config.scale,
            softcap=config.softcap,
        )

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """It has no weights."""


class Longformer(nn.Module):
    """A window, and global tokens with projections of their own."""

    def __init__(self, config: AttentionConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config = config
        assert isinstance(config.pattern, LongformerPattern)
        self.pattern = config.pattern
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = self.k_proj = self.v_proj = None
        if self.pattern.projections:
            self.q_proj = nn.Linear(model.hidden_size, query_size, bias="q" in config.bias)
            self.k_proj = nn.Linear(model.hidden_size, key_size, bias="k" in config.bias)
            self.v_proj = nn.Linear(model.hidden_size, key_size, bias="v" in config.bias)

    def forward(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, context: Context
    ) -> torch.Tensor | None:
        """See `Pattern`."""
        if context.cache is not None:
            return self._after_cached(q, k, v, context.cache)
        positions = torch.arange(x.shape[1], device=x.device)
        chosen = (positions < self.pattern.num_global_tokens).expand(x.shape[:2])
        if context.global_tokens is not None:
            chosen = chosen | context.global_tokens
        return longformer_attention(
            q,
            k,
            v,
            window=self.pattern.window,
            global_tokens=chosen,
            global_qkv=self._global_qkv(x) if bool(chosen.any()) else None,
            causal=self.config.causal,
            padding=context.padding,
            scale=self.config.scale,
        )

    def _global_qkv(self, x: torch.Tensor) -> QKV | None:
        if self.q_proj is None or self.k_proj is None or self.v_proj is None:
            return None
        size = (-1, self.config.head_dim)
        q, k, v = (
            projection(x).unflatten(2, size).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return q, k, v

    def _after_cached(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: LayerCache
    ) -> torch.Tensor:
        """Causal, through a mask: all positions are kept, since the first ones stay in sight."""
        query, key = cache.positions[..., None], cache.key_positions(k.shape[2])[:, None]
        first = self.pattern.num_global_tokens
        near = (query - key < self.pattern.window) | (key < first) | (query < first)
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask_of((near & (key <= query))[:, None], q.dtype),
            scale=self.config.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Normal weights, zero biases."""
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            if projection is not None:
                init_linear(projection, generator, INIT_STD)


class BigBird(nn.Module):
    """Neighbouring blocks, the two ends, and random ones."""

    def __init__(self, config: AttentionConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, context: Context
    ) -> torch.Tensor | None:
        """See `Pattern`."""
        pattern = self.config.pattern
        assert isinstance(pattern, BigBirdPattern)
        length, num_random = x.shape[1], pattern.num_random_blocks
        if length <= (5 + 2 * num_random) * pattern.block_size:
            return None
        shape = (q.shape[1], -(-length // pattern.block_size), num_random)
        seed = None if pattern.seed is None else pattern.seed + context.layer
        return bigbird_attention(
            q,
            k,
            v,
            block_size=pattern.block_size,
            random_blocks=_random_blocks(*shape, seed),
            padding=context.padding,
            scale=self.config.scale,
        )

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """It has no weights."""


@functools.lru_cache(maxsize=64)
def _random_blocks(heads: int, count: int, num_random: int, seed: int | None) -> torch.Tensor:
    if seed is None:
        return torch.zeros(heads, count - 2, num_random, dtype=torch.int64)
    return draw_random_blocks(heads, count, num_random, seed=seed)


_PATTERNS = {SlidingWindow: Window, LongformerPattern: Longformer, BigBirdPattern: BigBird}


def build_pattern(config: AttentionConfig, model: ModelConfig) -> Pattern | None:
    """The module for `config.pattern`, or None where all positions are seen."""
    if config.pattern is None:
        return None
    make: Any = _PATTERNS[type(config.pattern)]
    made: Pattern = make(config, model)
    return made
