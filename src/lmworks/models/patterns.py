"""The patterns of an attention as modules: which kernel computes it, with what weights of its own.

A pattern gets the queries, keys and values of its attention and gives the attended values, at a
cost that follows the keys that are seen. Where it can't (rows of unequal lengths in a cache, a bias
on the scores, ALiBi) it gives None, and the attention goes through a mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lmworks.models.windowed_attention import windowed_attention

if TYPE_CHECKING:
    from lmworks.models.config import AttentionConfig, ModelConfig
    from lmworks.models.context import Context


class WindowPattern(nn.Module):
    """Each position sees those near it."""

    def __init__(self, config: AttentionConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        x: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        context: Context,
    ) -> torch.Tensor | None:
        """x (B, T, H), q (B, N, T, D), k and v (B, K, S, D) -> (B, N, T, D) or None."""
        cache, config = context.cache, self.config
        assert config.pattern is not None
        even = cache is None or (cache.positions.shape[0] == 1 and not cache.sees_all)
        if config.alibi or context.bias is not None or not even:
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


def build_pattern(config: AttentionConfig, model: ModelConfig) -> nn.Module | None:
    """The module for `config.pattern`, or None where all positions are seen."""
    return None if config.pattern is None else WindowPattern(config, model)
