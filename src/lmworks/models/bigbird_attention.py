"""BigBird: blocks of queries that see their neighbours, the two ends, and blocks drawn at random.

A sequence is cut into blocks. The first and the last block see all and are seen by all. Any other
block sees itself and a block to each side, the first, the last, and `random_blocks`. A random block
is drawn among those that are not seen otherwise; a table that names a block twice, or one that is
seen anyway, counts it as often, which is what Hugging Face does in eval mode, where its whole table
is zeros.

Causal (no original): every set cut to the query's own position and those before it.
Source: Zaheer et al. 2020, arXiv 2007.14062, section 2 and appendix D.
Differs: random blocks are uniform over all blocks; the published code draws those of long
sequences from the first ones only, by fixed plans for a few lengths.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from lmworks.models.attention_parts import Blocks, Part, attend, mask_of
from lmworks.models.windowed_attention import only_if_needed, with_padding

SMALLEST_COUNT = 5  # blocks, below which the ends and the neighbours overlap


def bigbird_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    block_size: int,
    random_blocks: torch.Tensor,
    causal: bool = False,
    padding: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Softmax attention over neighbouring, first, last and random blocks.

    Args:
        q: (B, N, T, D); a last block that is not full is filled up and hidden.
        k, v: (B, K, T, D), N a multiple of K.
        block_size: positions per block.
        random_blocks: (N, blocks - 2, R) int64, for each head and each block but the first and
            the last; see `draw_random_blocks`. R may be 0.
        causal: every set cut to the past.
        padding: (B, T) bool, True where a token is.
        scale: as in `windowed_attention`.
    Returns: (B, N, T, D).
    Raises: ValueError for fewer than 5 blocks or a table of another shape.
    """
    length = q.shape[2]
    count = -(-length // block_size)
    if count < SMALLEST_COUNT or random_blocks.shape[:2] != (q.shape[1], count - 2):
        raise ValueError(
            f"{count} blocks of {block_size} (5 at least) need random_blocks of "
            f"({q.shape[1]}, {count - 2}, R), not {tuple(random_blocks.shape)}"
        )
    missing = count * block_size - length
    if missing:
        q, k, v = (F.pad(x, (0, 0, 0, missing)) for x in (q, k, v))
        padding = q.new_ones(1, length, dtype=torch.bool) if padding is None else padding
        padding = F.pad(padding, (0, missing))
    padding = only_if_needed(padding)
    parts = list(_fixed_parts(q, count, block_size, causal, padding))
    sources = [(k, v)]
    if random_blocks.shape[2]:
        sources.append((_drawn(k, random_blocks, count), _drawn(v, random_blocks, count)))
        parts.append(_random_part(q, random_blocks, block_size, causal, padding))
    return attend(q, sources, parts, scale=scale)[:, :, :length]


def draw_random_blocks(
    num_heads: int, count: int, num_random: int, *, seed: int, causal: bool = False
) -> torch.Tensor:
    """Which blocks each block sees besides the fixed ones, (num_heads, count - 2, num_random).

    Drawn without repetition among the blocks that are neither neighbours nor ends (causal: and
    lie before). -1 stands where there are not enough. Same seed, same table.
    """
    random = np.random.default_rng(seed)
    block = np.arange(count)
    far = np.abs(block[1:-1, None] - block) > 1
    if causal:
        far &= block < block[1:-1, None]
    far[:, [0, -1]] = False
    order = np.where(far, random.random((num_heads, count - 2, count)), np.inf)
    drawn = np.argsort(order, axis=-1, kind="stable")[..., :num_random]
    drawn = np.where(np.isinf(np.take_along_axis(order, drawn, -1)), -1, drawn)
    short = num_random - drawn.shape[-1]
    return torch.from_numpy(np.pad(drawn, ((0, 0), (0, 0), (0, short)), constant_values=-1))


def bigbird_counts(
    length: int, block_size: int, random_blocks: torch.Tensor, *, causal: bool = False
) -> torch.Tensor:
    """(N, T, T) int64: how often the query (row) counts the key (column); 0 where it is hidden."""
    heads, inner, _ = random_blocks.shape
    count = inner + 2
    near = (torch.arange(count)[:, None] - torch.arange(count)).abs() <= 1
    near[[0, -1]] = True
    near[:, [0, -1]] = True
    counts = near.long().repeat(heads, 1, 1)
    real = (random_blocks >= 0).long()
    counts[:, 1:-1].scatter_add_(2, random_blocks.clamp(min=0), real)
    tokens = counts.repeat_interleave(block_size, 1).repeat_interleave(block_size, 2)
    tokens = tokens[:, :length, :length]
    return tokens.tril() if causal else tokens


def _fixed_parts(
    q: torch.Tensor, count: int, size: int, causal: bool, padding: torch.Tensor | None
) -> Iterator[Part]:
    """The neighbours, the two ends as keys, the two ends as queries."""

    def part(first: int, rows: int, keys: Blocks, *, merges: bool = False) -> Part:
        queries = Blocks(first, rows, keys.count, rows)
        mask = _mask(q, queries, keys, causal, padding)
        return Part(queries=queries, keys=keys, mask=mask, merges=merges)

    last, inner = (count - 1) * size, (count - 3) * size
    yield part(size, size, Blocks(0, 3 * size, count - 2, size))
    yield part(2 * size, inner, Blocks(0, size), merges=True)
    if not causal:
        yield part(size, inner, Blocks(last, size), merges=True)
    yield part(0, size, Blocks(0, size if causal else last + size))
    yield part(last, size, Blocks(0, last + size))


def _mask(
    q: torch.Tensor, queries: Blocks, keys: Blocks, causal: bool, padding: torch.Tensor | None
) -> torch.Tensor | None:
    seen = q.new_ones((1, 1, 1, 1, keys.size), dtype=torch.bool)
    if causal and keys.start + keys.size > queries.start:
        position = torch.arange(keys.start, keys.start + keys.size, device=q.device)
        query = torch.arange(queries.start, queries.start + queries.size, device=q.device)
        seen = (position <= query[:, None])[None, None, None]
    seen = with_padding(seen, keys, padding)
    return None if bool(seen.all()) else mask_of(seen, q.dtype)


def _drawn(x: torch.Tensor, random_blocks: torch.Tensor, count: int) -> torch.Tensor:
    """(B, K, T, D) -> (B, N, (blocks - 2) * R * size, D): the drawn blocks one after the other."""
    heads = random_blocks.shape[0]
    owner = torch.arange(heads) // (heads // x.shape[1]) * count
    index = (random_blocks.clamp(min=0) + owner[:, None, None]).flatten().to(x.device)
    blocks = x.unflatten(2, (count, -1)).flatten(1, 2)  # (B, K * blocks, size, D)
    return blocks.index_select(1, index).unflatten(1, (heads, -1)).flatten(2, 3)


def _random_part(
    q: torch.Tensor,
    random_blocks: torch.Tensor,
    size: int,
    causal: bool,
    padding: torch.Tensor | None,
) -> Part:
    _, inner, drawn = random_blocks.shape
    table = random_blocks.to(q.device)
    seen = table >= 0
    if causal:
        seen &= table < torch.arange(1, inner + 1, device=q.device)[:, None]
    by_token = seen[None, ..., None].expand(1, -1, -1, -1, size)
    if padding is not None:
        by_token = by_token & padding.unflatten(1, (-1, size))[:, table.clamp(min=0)]
    mask = by_token.flatten(3)[:, :, :, None]  # (B or 1, N, blocks - 2, 1, R * size)
    return Part(
        queries=Blocks(size, size, inner, size),
        keys=Blocks(0, drawn * size, inner, drawn * size),
        mask=None if bool(mask.all()) else mask_of(mask, q.dtype),
        source=1,
        merges=True,
    )
