"""Attention over a union of key sets, read in blocks where they lie: what sparse patterns share.

A pattern says for each block of queries which keys it sees: a window that slides along, blocks
that all see, blocks drawn at random. Each such set is a `Part`: strided blocks of queries against
strided blocks of keys, overlapping where a window does, never copied. A part's softmax is computed
alone and the parts are merged by their log-sums, as flash attention merges its tiles, so cost and
memory follow the keys that are seen and nothing of size T x S exists, forward or backward.

On a CPU a part is one call of PyTorch's fused kernel over all its blocks. The kernel's backward
takes an output and a log-sum: given the merged ones it yields each part's gradients, so the
backward is as linear as the forward. With `softcap`, or on another device, the same parts are
computed with batched matrix products and autograd; memory then grows with the scores that are
seen, still linearly.

Keys that lie in two parts count twice; a pattern leaves them out of one. A query that sees
nothing has a finite output without meaning.

Shapes: B batch, N query heads, K key-value heads (N a multiple), T queries, S keys, D head size.
Source: Dao et al. 2022, arXiv 2205.14135, section 3.1 (softmax in parts).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

_forward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Numbers of a part's key gradients made at once: small enough that the allocator gives the same
# memory again instead of fresh pages, which cost as much as a third of the backward.
_PIECE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Blocks:
    """`count` blocks of `size` positions, the i-th from `start + i * step` on; step 0: one block
    for all."""

    start: int
    size: int
    count: int = 1
    step: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
    """Blocks of queries that see blocks of keys, the i-th the i-th.

    Attributes:
        queries: blocks without gaps or overlap (step = size).
        keys: as many blocks; they may overlap or be one block for all.
        mask: added to the scores, (B or 1, N or 1, count or 1, size or 1, keys), or None. Hidden
            keys have `hidden_score` there.
        source: which pair of keys and values the blocks lie in.
        merges: whether an earlier part has covered these queries.
    """

    queries: Blocks
    keys: Blocks
    mask: torch.Tensor | None = None
    source: int = 0
    merges: bool = False


def hidden_score(dtype: torch.dtype) -> float:
    """What is added to the score of a key that is not seen: finite, so that no NaN arises."""
    return torch.finfo(dtype).min / 4


def mask_of(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool tensor, True where a key is seen, as what is added to the scores."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
        ~seen, hidden_score(dtype)
    )


def attend(
    q: torch.Tensor,
    sources: Sequence[tuple[torch.Tensor, torch.Tensor]],
    parts: Sequence[Part],
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Softmax attention of each query over the keys that its parts name.

    Args:
        q: (B, N, T, D).
        sources: pairs of keys and values, each (B, K or N, S, D); gradients flow to all.
        parts: cover every query; the first for a query has `merges` False, the others True.
        scale: what scores are multiplied with; None takes 1 / sqrt(D).
        softcap: scores x become softcap * tanh(x / softcap) (Gemma 2).
    Returns: (B, N, T, D).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    same_size = all(v.shape[-1] == q.shape[-1] for _, v in sources)
    if softcap or q.device.type != "cpu" or not same_size:
        return _attend_by_products(q, sources, parts, scale, softcap)
    flat = [_last_dense(tensor) for pair in sources for tensor in pair]
    out: torch.Tensor = _Attend.apply(_last_dense(q), tuple(parts), scale, *flat)
    return out


def _last_dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


class _Attend(torch.autograd.Function):
    """The parts through the fused kernel; out and its gradient are (B, T, N, D) in memory."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, parts: tuple[Part, ...], scale: float, *flat: torch.Tensor
    ) -> torch.Tensor:
        batch, heads, length, size = q.shape
        out = q.new_empty(batch, length, heads, size).transpose(1, 2)
        wide = torch.promote_types(q.dtype, torch.float32)
        log_sums = q.new_empty((batch, length, heads), dtype=wide).transpose(1, 2)
        for part in parts:
            k, v = flat[2 * part.source], flat[2 * part.source + 1]
            for row, at in _calls(q, k):
                found, sums = _forward_kernel(
                    _view(q, row, at.q, part.queries),
                    _view(k, row, at.k, part.keys),
                    _view(v, row, at.k, part.keys),
                    attn_mask=_mask(part, row, at.q),
                    scale=scale,
                )
                held = _view(out, row, at.q, part.queries)
                held_sums = _view(log_sums[..., None], row, at.q, part.queries)[..., 0]
                if part.merges:
                    _merge(held, held_sums, found, sums)
                else:
                    held.copy_(found)
                    held_sums.copy_(sums)
        ctx.save_for_backward(q, out, log_sums, *flat)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, out, log_sums, *flat = ctx.saved_tensors
        grad = _last_dense(gradients[0])
        heads, size = q.shape[1], q.shape[3]
        grad_q = torch.empty_like(out)
        grad_flat = [torch.zeros_like(tensor) for tensor in flat]
        for part in _in_pieces(ctx.parts, heads * size):
            k, v = flat[2 * part.source], flat[2 * part.source + 1]
            for row, at in _calls(q, k):
                found_q, found_k, found_v = _backward_kernel(
                    _view(grad, row, at.q, part.queries),
                    _view(q, row, at.q, part.queries),
                    _view(k, row, at.k, part.keys),
                    _view(v, row, at.k, part.keys),
                    _view(out, row, at.q, part.queries),
                    _view(log_sums[..., None], row, at.q, part.queries)[..., 0],
                    0.0,
                    False,
                    attn_mask=_mask(part, row, at.q),
                    scale=ctx.scale,
                )
                held = _view(grad_q, row, at.q, part.queries)
                held.add_(found_q) if part.merges else held.copy_(found_q)
                _scatter(grad_flat[2 * part.source], row, at.k, part.keys, found_k)
                _scatter(grad_flat[2 * part.source + 1], row, at.k, part.keys, found_v)
        return grad_q, None, None, *grad_flat


def _in_pieces(parts: Sequence[Part], row_cells: int) -> Iterator[Part]:
    """The parts in runs of blocks whose gradients fit memory that is used again and again."""
    for part in parts:
        most = max(1, _PIECE // (part.keys.size * row_cells))
        for first in range(0, part.queries.count, most):
            yield part if part.queries.count <= most else _run_of_blocks(part, first, most)


def _run_of_blocks(part: Part, first: int, most: int) -> Part:
    count = min(most, part.queries.count - first)
    mask = part.mask
    if mask is not None and mask.shape[2] > 1:
        mask = mask[:, :, first : first + count]
    queries, keys = (
        Blocks(blocks.start + first * blocks.step, blocks.size, count, blocks.step)
        for blocks in (part.queries, part.keys)
    )
    return dataclasses.replace(part, queries=queries, keys=keys, mask=mask)


class _Heads(NamedTuple):
    q: slice
    k: slice


def _calls(q: torch.Tensor, k: torch.Tensor) -> Iterator[tuple[int, _Heads]]:
    """The batch rows and sets of heads that one strided call can hold."""
    groups = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        for group in range(groups):
            yield row, _Heads(slice(group, None, groups), slice(None))


def _view(x: torch.Tensor, row: int, heads: slice, blocks: Blocks) -> torch.Tensor:
    """(B, heads, S, D) -> (count, heads, size, D) over the same memory."""
    picked = x[row, heads]
    stride = picked.stride()
    return picked.as_strided(
        (blocks.count, picked.shape[0], blocks.size, picked.shape[2]),
        (blocks.step * stride[1], stride[0], stride[1], stride[2]),
        picked.storage_offset() + blocks.start * stride[1],
    )


def _mask(part: Part, row: int, heads: slice) -> torch.Tensor | None:
    """(count or 1, heads or 1, size or 1, keys), as the kernel spreads it."""
    if part.mask is None:
        return None
    mask = part.mask[row if part.mask.shape[0] > 1 else 0]
    return (mask[heads] if mask.shape[0] > 1 else mask).transpose(0, 1)


def _merge(
    held: torch.Tensor, held_sums: torch.Tensor, found: torch.Tensor, sums: torch.Tensor
) -> None:
    """Add a part to what earlier parts gave, in place: outputs weighed by their softmax sums."""
    total = torch.logaddexp(held_sums, sums)
    held.mul_((held_sums - total).exp_()[..., None])
    held.addcmul_(found, (sums - total).exp_()[..., None].to(found.dtype))
    held_sums.copy_(total)


def _scatter(
    grad: torch.Tensor, row: int, heads: slice, blocks: Blocks, found: torch.Tensor
) -> None:
    """Add the gradients of blocks (count, heads, size, D), which may overlap, to (B, K, S, D)."""
    if blocks.step == 0 or blocks.count == 1:
        shared = grad[row, heads, blocks.start : blocks.start + blocks.size]
        shared.add_(found.sum(0) if blocks.count > 1 else found[0])
        return
    # Pieces of one step's width: those of the same place in all blocks lie without overlap.
    for first in range(0, blocks.size, blocks.step):
        width = min(blocks.step, blocks.size - first)
        piece = Blocks(blocks.start + first, width, blocks.count, blocks.step)
        _view(grad, row, heads, piece).add_(found[:, :, first : first + width])


def _attend_by_products(
    q: torch.Tensor,
    sources: Sequence[tuple[torch.Tensor, torch.Tensor]],
    parts: Sequence[Part],
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """As `attend`, with batched products and autograd: any device, any score function."""
    out = q.new_zeros(*q.shape[:3], sources[0][1].shape[-1])
    sums = q.new_full(q.shape[:3], hidden_score(q.dtype))
    for part in parts:
        first, end = part.queries.start, part.queries.start + part.queries.size * part.queries.count
        found, found_sums = _part_by_products(q, *sources[part.source], part, scale, softcap)
        total = torch.logaddexp(sums[:, :, first:end], found_sums)
        old_share = (sums[:, :, first:end] - total).exp()[..., None]
        new_share = (found_sums - total).exp()[..., None]
        merged = out[:, :, first:end] * old_share + found * new_share
        out = torch.cat((out[:, :, :first], merged, out[:, :, end:]), 2)
        sums = torch.cat((sums[:, :, :first], total, sums[:, :, end:]), 2)
    return out


def _part_by_products(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    part: Part,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One part's output (B, N, count * size, D) and log-sums (B, N, count * size)."""
    groups = q.shape[1] // k.shape[1]
    queries = _blocked(q, part.queries).unflatten(1, (k.shape[1], groups))
    keys, values = (_blocked(x, part.keys)[:, :, None] for x in (k, v))
    scores = queries @ keys.transpose(-1, -2) * scale  # (B, K, N / K, count, size, keys)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if part.mask is not None:
        by_group = part.mask.unflatten(
            1, (k.shape[1], groups) if part.mask.shape[1] > 1 else (1, 1)
        )
        scores = scores + by_group
    sums = scores.logsumexp(-1)
    out = (scores - sums[..., None]).exp() @ values
    return out.flatten(3, 4).flatten(1, 2), sums.flatten(3, 4).flatten(1, 2)


def _blocked(x: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """(B, heads, S, D) -> (B, heads, count, size, D); one block for all stays one."""
    if blocks.step == 0 or blocks.count == 1:
        return x[:, :, None, blocks.start : blocks.start + blocks.size]
    end = blocks.start + (blocks.count - 1) * blocks.step + blocks.size
    return x[:, :, blocks.start : end].unfold(2, blocks.size, blocks.step).transpose(-1, -2)
