"""Longformer: a window around each token, and a few global tokens that see and are seen by all.

Any other token's softmax runs over its window and the global tokens together, each counted once.
Global tokens attend to everything, in the original through projections of their own (`global_qkv`).
In the causal form (no original; the "attention sinks" of streaming decoders are its case of leading
global tokens) each of these sets is cut to the past.

Source: Beltagy et al. 2020, arXiv 2004.05150, section 3; sinks: Xiao et al. 2023, arXiv 2309.17453.
Left out: dilated windows, which no published checkpoint uses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lmworks.models.attention_parts import Blocks, Part, attend, mask_of
from lmworks.models.windowed_attention import (
    only_if_needed,
    window_mask,
    window_parts,
    windowed_attention,
)

# Queries, keys and values of global attention: (B, N, T, D), (B, K, S, D), (B, K, S, D).
QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def longformer_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int,
    global_tokens: torch.Tensor,
    global_qkv: QKV | None = None,
    causal: bool = False,
    padding: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Softmax attention over a window and the global tokens.

    Args:
        q: (B, N, T, D).
        k, v: (B, K, T, D), N a multiple of K.
        window: keys that a query sees on both sides together (Longformer's `attention_window`,
            even): window / 2 to each side and itself; causal: as in `windowed_attention`.
        global_tokens: (B, T) bool, True where a token is global.
        global_qkv: what global tokens attend with; None takes q, k and v. The other tokens see
            them through k and v in any case.
        causal: every set cut to the query's own position and those before it.
        padding: (B, T) bool, True where a token is.
        scale: as in `windowed_attention`.
    Returns: (B, N, T, D).
    Raises: ValueError for a window that is odd or below 1.
    """
    left, right = reach(window, causal)
    padding = only_if_needed(padding)
    index, real = global_positions(global_tokens)
    if not index.shape[1]:
        return windowed_attention(
            q, k, v, window=left + 1, causal=causal, padding=padding, scale=scale
        )
    parts = list(window_parts(q, k.shape[2], left, right, offset=0, padding=padding))
    parts.append(_seen_by_all(q, index, real, left, right, causal=causal, padding=padding))
    sources = [(k, v), (_pick(k, index), _pick(v, index))]
    out = attend(q, sources, parts, scale=scale)
    found = _global_rows(global_qkv or (q, k, v), index, causal, padding, scale)
    return _put(out, index, real, found)


def reach(window: int, causal: bool) -> tuple[int, int]:
    """How many keys a query sees before and after itself.

    Raises: ValueError for a window that is odd (unless causal) or below 1.
    """
    if window < 1 or (window % 2 and not causal):
        raise ValueError(f"window {window}: an even number of keys is needed")
    return (window - 1, 0) if causal else (window // 2, window // 2)


def longformer_mask(
    global_tokens: torch.Tensor, window: int, *, causal: bool = False
) -> torch.Tensor:
    """(B, T, T) bool: True where the query (row) sees the key (column)."""
    length = global_tokens.shape[1]
    near = window_mask(length, length, *reach(window, causal)).to(global_tokens.device)
    seen = near | global_tokens[:, None, :] | global_tokens[:, :, None]
    return seen.tril() if causal else seen


def global_positions(global_tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the global tokens are, (B, G) int64, and which of these are real, (B, G) bool.

    G is the largest number in a row; shorter rows are filled with positions that are not global.
    """
    counts = global_tokens.sum(1)
    most = int(counts.max()) if len(counts) else 0
    index = torch.argsort(global_tokens.int(), dim=1, descending=True, stable=True)[:, :most]
    real = torch.arange(most, device=index.device) < counts[:, None]
    return index, real


def _pick(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, heads, S, D), (B, G) -> (B, heads, G, D)."""
    return x.gather(2, _spread(index, x))


def _spread(index: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])


def _seen_by_all(
    q: torch.Tensor,
    index: torch.Tensor,
    real: torch.Tensor,
    left: int,
    right: int,
    *,
    causal: bool,
    padding: torch.Tensor | None,
) -> Part:
    """All queries over the global keys that do not lie in their windows already."""
    length = q.shape[2]
    distance = index[:, None, :] - torch.arange(length, device=q.device)[:, None]  # (B, T, G)
    seen = (distance < -left) if causal else (distance < -left) | (distance > right)
    seen &= (real if padding is None else real & padding.gather(1, index))[:, None]
    return Part(
        queries=Blocks(0, length, 1, length),
        keys=Blocks(0, index.shape[1]),
        mask=mask_of(seen[:, None, None], q.dtype),
        source=1,
        merges=True,
    )


def _global_rows(
    qkv: QKV,
    index: torch.Tensor,
    causal: bool,
    padding: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """Full attention of the global tokens alone, (B, N, G, D)."""
    q, k, v = qkv
    seen = None if padding is None else padding[:, None]
    if causal:
        past = torch.arange(k.shape[2], device=k.device) <= index[:, :, None]
        seen = past if seen is None else past & seen
    return F.scaled_dot_product_attention(
        _pick(q, index),
        k,
        v,
        attn_mask=None if seen is None else seen[:, None],
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _put(
    out: torch.Tensor, index: torch.Tensor, real: torch.Tensor, found: torch.Tensor
) -> torch.Tensor:
    """`out` with the rows of the global tokens replaced; a filled-in row keeps what it has."""
    rows = torch.where(real[:, None, :, None], found, _pick(out, index))
    return out.scatter(2, _spread(index, out), rows)
