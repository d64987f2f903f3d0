"""Which positions a position sees, as what is added to the scores: 0 or -infinity, or a bias.

Four things hide one: what comes later (or `visible`, which says it outright), a window, padding,
and another document of a packed row. Order is that of the row, distance that of `positions`.

Where nothing but "those up to itself" is asked, there is no mask: the fused kernels know it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmworks.models.config import AttentionConfig, SlidingWindow
from lmworks.models.positions import alibi_slopes

if TYPE_CHECKING:
    from lmworks.models.context import Context, Encoded


def score_mask(
    config: AttentionConfig, context: Context, num_new: int, num_seen: int, device: torch.device
) -> tuple[torch.Tensor | None, bool]:
    """The mask of one attention, and whether the plain causal one is meant instead.

    Returns: ((B or 1, N or 1, T, S) or None, is_causal).
    """
    heads = config.num_attention_heads if config.alibi else 0
    window = config.pattern.window if isinstance(config.pattern, SlidingWindow) else None
    key = ("mask", config.causal, window, heads, num_new, num_seen)
    if key not in context.memo:
        context.memo[key] = _build(context, config.causal, window, heads, num_new, num_seen, device)
    found: tuple[torch.Tensor | None, bool] = context.memo[key]
    return found


def _build(
    context: Context,
    causal: bool,
    window: int | None,
    alibi_heads: int,
    num_new: int,
    num_seen: int,
    device: torch.device,
) -> tuple[torch.Tensor | None, bool]:
    cache = context.cache
    if window is not None and window >= num_seen:
        window = None  # nothing is out of sight
    given = (context.padding, context.bias, context.documents, context.visible)
    plain = window is None and not alibi_heads and all(value is None for value in given)
    if plain and not causal:
        return None, False
    if plain and (cache is None or cache.is_causal):
        return None, num_new > 1
    if plain and cache is not None and cache.sees_all:
        return None, False
    queries = torch.arange(num_new, device=device)[None] if cache is None else cache.positions
    keys = torch.arange(num_seen, device=device)[None]
    if cache is not None:
        keys = cache.key_positions(num_seen)
    ahead = keys[:, None, None, :] > queries[:, None, :, None]  # (B or 1, 1, T, S)
    if context.places is not None:
        queries = keys = context.places
    distance = queries[:, None, :, None] - keys[:, None, None, :]  # (B or 1, 1, T, S)
    hidden = (keys < 0)[:, None, None, :].expand_as(distance).clone()
    if context.visible is not None:
        hidden = hidden | ~context.visible[:, None]
    elif causal:
        hidden |= ahead
    if window is not None:
        hidden |= distance.abs() >= window
    if context.padding is not None:
        hidden = hidden | ~context.padding[:, None, None, :]
    if context.documents is not None:
        numbers = context.documents.numbers
        hidden = hidden | (numbers[:, None, :, None] != numbers[:, None, None, :])
    mask = torch.zeros(hidden.shape, device=device)
    if alibi_heads:
        mask = mask - alibi_slopes(alibi_heads).to(device)[:, None, None] * distance.abs()
    if context.bias is not None:
        mask = mask + context.bias
    return mask.masked_fill(hidden, _hidden_value(context)), False


def _hidden_value(context: Context) -> float:
    # A row of padding that sees nothing would become NaN with -inf.
    return -torch.inf if context.padding is None else torch.finfo(torch.float32).min


def cross_mask(encoded: Encoded) -> torch.Tensor | None:
    """The mask of cross attention, (B, 1, 1, S), or None where nothing is padding."""
    if encoded.padding is None:
        return None
    hidden = ~encoded.padding[:, None, None, :]
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, lowest)
