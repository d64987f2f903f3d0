"""Keys and values in pages, read and written: in place for few queries, in one piece for many.

A step of few positions reads each page once, where it lies, in a compiled kernel. A step of many
(a chunk of a prompt) is cheaper with the pages copied side by side, through PyTorch's matrix
products; so is everything that the kernel does not know: capped scores, biases, patterns, prefixes,
head sizes that do not fill its vectors, other devices.

In the kernel, what a query gathers is the same to the bit whatever rows stand beside it, however
many positions the step has, and wherever its pages lie.

Source: Kwon et al. 2023, PagedAttention, arXiv 2309.06180, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lmworks.models import paged_attention_slots
from lmworks.models.cache_types import F16, F32, coding, decode, encode, row_size
from lmworks.models.kernel_calls import address, computes, parts_of, run
from lmworks.models.kernel_slots import LANES
from lmworks.models.paged_attention_slots import TENSORS
from lmworks.models.pages import PAGE

if TYPE_CHECKING:
    from lmworks.models.cache_step import CacheStep
    from lmworks.models.config import AttentionConfig

MOST_NEW = 16  # positions of a row; a chunk of more goes through matrix products
_PARTS = 8
_MODULE = "paged_attention_kernels"


def attends(q: torch.Tensor, config: AttentionConfig) -> bool:
    """Whether `attend` can take queries (B, N, T, D) of such an attention."""
    return (
        q.shape[2] <= MOST_NEW
        and q.shape[3] % LANES == 0
        and q.dtype == torch.float32
        and computes(q)
        and config.causal
        and config.softcap is None
        and config.pattern is None
        and not config.alibi
    )


def attend(
    keys: torch.Tensor,
    values: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    step: CacheStep,
    scale: float | None,
) -> torch.Tensor:
    """Write k and v (B, K, T, D) into pools (pages, K, PAGE, D); q (B, N, T, D) -> the same.

    Pools may be coded (see `cache_types`); both are then of one type.

    Raises: ValueError for keys or values that the pools were not made for.
    """
    _check(keys, k, step)
    _check(values, v, step)
    batch, heads, num_new, size = k.shape
    q, k, v = _rows(q), _rows(k), _rows(v)
    out = torch.empty(batch, num_new, q.shape[1], size)
    kind = coding(keys)
    calls = step.prepared(_attending, heads, size, q.shape[1] // heads, scale, kind, keys.shape[-1])
    written = kind != F32
    if written:
        _write(keys, encode(k, keys.dtype), step)
        _write(values, encode(v, values.dtype), step)
    tensors = (
        address(out),
        *(address(keys), 0 if written else address(k), *k.stride()[:3]),
        *(address(values), 0 if written else address(v), *v.stride()[:3]),
        *(address(q), *q.stride()[:3]),
    )
    for call in calls.arguments:
        call[TENSORS:] = tensors
    run(_MODULE, "attend", calls.arguments)
    return out.transpose(1, 2)


def extend(pool: torch.Tensor, new: torch.Tensor, step: CacheStep) -> torch.Tensor:
    """Write `new` (B, heads, T, D) into the pool; what is held, (B, heads, S, D).

    Raises: ValueError for heads that the pool was not made for.
    """
    _check(pool, new, step)
    begins = step.even and step.start == 0
    if coding(pool) != F32:
        rows = encode(new, pool.dtype)
        _write(pool, rows, step)
        return decode(rows) if begins else decode(_gathered(pool, step))
    if not computes(pool, new):
        _write(pool, new, step)
        return new.to(pool.dtype) if begins else _gathered(pool, step)
    batch, heads, _, size = new.shape
    new = _rows(new)
    out = None if begins else torch.empty(batch, heads, step.total, size)
    calls = step.prepared(_extending, heads, size)
    tensors = (address(out), address(pool), address(new), *new.stride()[:3])
    for call in calls.arguments:
        call[TENSORS : TENSORS + len(tensors)] = tensors
    run(_MODULE, "extend", calls.arguments)
    return new if out is None else out


class Calls:
    """Arguments of the parts of a kernel's work, but for a layer's tensors.

    They are made once for all layers of a step that are alike.
    """

    def __init__(self, values: Mapping[str, int], parts: Sequence[tuple[int, int]]) -> None:
        self.arguments = [np.zeros(paged_attention_slots.ARGUMENTS, np.int64) for _ in parts]
        self.held: list[np.ndarray] = []  # what the arguments point to
        for call, (first, last) in zip(self.arguments, parts, strict=True):
            for name, value in {**values, "FIRST": first, "LAST": last}.items():
                call[getattr(paged_attention_slots, name)] = value


def _extending(step: CacheStep, heads: int, size: int) -> Calls:
    count = len(step.starts) * heads
    parts = parts_of(count, count * step.total * size // 8, _PARTS)
    return Calls({**_common(step, heads, size), "SEEN": step.total}, parts)


def _attending(
    step: CacheStep, heads: int, size: int, group: int, scale: float | None, kind: int, width: int
) -> Calls:
    queries = step.num_new * group
    scales = np.array([size**-0.5 if scale is None else scale], dtype=np.float32)
    scores_row = step.table.shape[1] * PAGE + 1  # and the sum's inverse
    work = heads * queries * size * int(step.starts.sum())
    calls = Calls(
        {
            **_common(step, heads, size),
            "GROUP": group,
            "SCALE": scales.ctypes.data,
            "SCORES_ROW": scores_row,
            "CODING": kind,
            "ROW_BYTES": width * (2 if kind == F16 else 1),
        },
        parts_of(len(step.starts) * heads, work, _PARTS),
    )
    scratches: list[np.ndarray] = [
        np.empty(queries * (size + scores_row), dtype=np.float32) for _ in calls.arguments
    ]
    for call, scratch in zip(calls.arguments, scratches, strict=True):
        call[paged_attention_slots.SCRATCH] = scratch.ctypes.data
    decoded: list[np.ndarray] = []
    if kind != F32:
        decoded = [np.empty(PAGE * size, dtype=np.float32) for _ in calls.arguments]
        for call, room in zip(calls.arguments, decoded, strict=True):
            call[paged_attention_slots.DECODED] = room.ctypes.data
    calls.held = [scales, *scratches, *decoded]
    return calls


def _check(pool: torch.Tensor, new: torch.Tensor, step: CacheStep) -> None:
    heads, size = pool.shape[1], row_size(pool)
    if new.shape != (len(step.starts), heads, step.num_new, size):
        raise ValueError("the cache was made for another model")


def _write(pool: torch.Tensor, new: torch.Tensor, step: CacheStep) -> None:
    table = torch.from_numpy(step.table).to(pool.device).long()
    pages = table.gather(1, step.positions // PAGE)  # (B, T)
    pool[pages, :, step.positions % PAGE] = new.transpose(1, 2).to(pool.dtype)


def _gathered(pool: torch.Tensor, step: CacheStep) -> torch.Tensor:
    table = torch.from_numpy(step.table).to(pool.device).long()
    held = pool[table].transpose(1, 2).flatten(2, 3)[:, :, : step.total]
    if step.even:
        return held
    ends = step.positions[:, -1:] + 1
    behind = torch.arange(step.total, device=pool.device) >= ends
    return held.masked_fill(behind[:, None, :, None], 0)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """float32 with the numbers of a head side by side."""
    tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _common(step: CacheStep, heads: int, size: int) -> dict[str, int]:
    return {
        "TABLE": step.table.ctypes.data,
        "TABLE_ROW": step.table.shape[1],
        "STARTS": step.starts.ctypes.data,
        "NUM_NEW": step.num_new,
        "HEADS": heads,
        "SIZE": size,
    }
