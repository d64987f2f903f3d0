"""Attention within a window, at a cost that follows the window and not the length.

Causal: position i sees i - window + 1 .. i, itself included (Mistral, Gemma, Hugging Face's
`sliding_window_overlay`). Symmetric: as far to the other side as well, i - window + 1 ..
i + window - 1; what Hugging Face calls a reach, inclusive, is one less.

Queries go in blocks of about a quarter of a window, each against the run of keys that its block
can see, so that about a fifth of the computed scores is thrown away. Blocks in the middle share
one mask; those at the ends have their own.

Queries may be the last of more keys (`offset`): a prompt that is read in chunks, or decoding.
Source: Beltagy et al. 2020, arXiv 2004.05150, section 3; Jiang et al. 2023, arXiv 2310.06825.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from lmworks.models.attention_parts import Blocks, Part, attend, mask_of

_SMALLEST_BLOCK, _LARGEST_BLOCK = 32, 256


def windowed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int,
    causal: bool = True,
    offset: int | None = None,
    padding: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Softmax attention in which each query sees the keys of its window.

    Args:
        q: (B, N, T, D).
        k, v: (B, K, S, D), N a multiple of K, S >= offset + T.
        window: how many keys a query sees, itself included, before it and unless causal as many
            after it. >= 1.
        offset: the key position of the first query; None takes S - T.
        padding: (B, S) bool, True where a token is; keys elsewhere are not seen.
        scale, softcap: as in `attend`.
    Returns: (B, N, T, D).
    Raises: ValueError if window < 1 or the queries lie outside the keys.
    """
    num_queries, num_keys = q.shape[2], k.shape[2]
    offset = num_keys - num_queries if offset is None else offset
    if window < 1 or offset < 0 or offset + num_queries > num_keys:
        raise ValueError(
            f"window {window} >= 1 and {num_queries} queries from {offset} on within {num_keys} "
            "keys are needed"
        )
    left, right = window - 1, 0 if causal else window - 1
    padding = only_if_needed(padding)
    if num_queries == 1 and softcap is None:
        return _one_query(q, k, v, left, right, offset, padding, scale)
    if num_queries == num_keys <= window and padding is None and softcap is None:
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped
        )
    parts = window_parts(q, num_keys, left, right, offset=offset, padding=padding)
    return attend(q, [(k, v)], list(parts), scale=scale, softcap=softcap)


def window_mask(
    num_queries: int, num_keys: int, left: int, right: int, offset: int = 0
) -> torch.Tensor:
    """(T, S) bool: True where query i, at key position offset + i, sees the key."""
    distance = torch.arange(num_keys) - (torch.arange(num_queries)[:, None] + offset)
    return (distance >= -left) & (distance <= right)


def window_parts(
    q: torch.Tensor,
    num_keys: int,
    left: int,
    right: int,
    *,
    offset: int,
    padding: torch.Tensor | None,
) -> Iterator[Part]:
    """The parts of a window from `left` keys before each query to `right` after it.

    `padding` is (B or 1, S) bool, True where a key may be seen.
    """
    num_queries = q.shape[2]
    size = block_size(left + right + 1)
    for first, count in _runs(num_queries, num_keys, left, right, offset, size):
        rows = size if count > 1 else min(size, num_queries - first)
        low = max(0, offset + first - left)
        high = min(num_keys, offset + first + rows + right)
        keys = Blocks(low, high - low, count, size if count > 1 else 0)
        seen = window_mask(rows, high - low, left, right, offset + first - low).to(q.device)
        yield Part(
            queries=Blocks(first, rows, count, rows),
            keys=keys,
            mask=mask_of(with_padding(seen[None, None, None], keys, padding), q.dtype),
        )


def block_size(width: int) -> int:
    """Queries per block for a window of `width` keys: a power of two about a quarter of it."""
    quarter = max(1, width // 4)
    return min(max(1 << (quarter.bit_length() - 1), _SMALLEST_BLOCK), _LARGEST_BLOCK)


def with_padding(seen: torch.Tensor, keys: Blocks, padding: torch.Tensor | None) -> torch.Tensor:
    """`seen` (1, 1, 1, rows, keys) and not hidden by `padding` (B, S) in the blocks of keys."""
    if padding is None:
        return seen
    end = keys.start + max(keys.count - 1, 0) * keys.step + keys.size
    used = padding[:, keys.start : end]
    if bool(used.all()):
        return seen
    blocks = used.unfold(1, keys.size, keys.step) if keys.step else used[:, None]
    return seen & blocks[:, None, :, None]


def _runs(
    num_queries: int, num_keys: int, left: int, right: int, offset: int, size: int
) -> Iterator[tuple[int, int]]:
    """(first query, blocks): blocks whose keys all exist in one run, those at the ends alone."""
    first = 0
    while first < num_queries:
        # How many blocks from here on are full and have all their keys.
        inside = min(num_queries - first, num_keys - right - offset - first) // size
        count = inside if offset + first >= left and inside > 1 else 1
        yield first, count
        first += count * size


def _one_query(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    left: int,
    right: int,
    offset: int,
    padding: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """Decoding: the keys of the window are a slice, and none of them is hidden."""
    seen = slice(max(0, offset - left), offset + right + 1)
    return F.scaled_dot_product_attention(
        q,
        k[:, :, seen],
        v[:, :, seen],
        attn_mask=None if padding is None else padding[:, None, None, seen],
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def only_if_needed(padding: torch.Tensor | None) -> torch.Tensor | None:
    """None for a mask that hides nothing."""
    return None if padding is None or bool(padding.all()) else padding
