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

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from lmworks.models import paged_attention_slots
from lmworks.models.kernel_calls import address, computes, parts_of, run
from lmworks.models.kernel_slots import LANES
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
    """Write k and v (B, K, T, D) into pools (pages, K, PAGE, D); q (B, N, T, D) -> the same."""
    batch, heads, num_new, size = k.shape
    group = q.shape[1] // heads
    q, k, v = _rows(q), _rows(k), _rows(v)
    out = torch.empty(batch, num_new, q.shape[1], size)
    scales = np.array([size**-0.5 if scale is None else scale], dtype=np.float32)
    scores_row = step.table.shape[1] * PAGE + 1  # and the sum's inverse
    queries = num_new * group
    shared = {
        **_common(step, heads, size),
        **_new(k, "NEW", keys, "POOL"),
        **_new(v, "VALUES_NEW", values, "VALUES_POOL"),
        **_strided(q, "QUERIES"),
        "GROUP": group,
        "OUT": address(out),
        "SCALE": scales.ctypes.data,
        "SCORES_ROW": scores_row,
    }
    calls, scratches = [], []
    for first, last in parts_of(batch * heads, queries * size * int(step.starts.sum()), _PARTS):
        scratch = np.empty(queries * (size + scores_row), dtype=np.float32)
        scratches.append(scratch)
        own = {"FIRST": first, "LAST": last, "SCRATCH": scratch.ctypes.data}
        calls.append(_arguments({**shared, **own}))
    run(_MODULE, "attend", calls)
    return out.transpose(1, 2)


def extend(pool: torch.Tensor, new: torch.Tensor, step: CacheStep) -> torch.Tensor:
    """Write `new` (B, heads, T, D) into the pool; what is held, (B, heads, S, D)."""
    begins = step.even and step.start == 0
    if not computes(pool, new):
        _write(pool, new, step)
        return new.to(pool.dtype) if begins else _gathered(pool, step)
    batch, heads, _, size = new.shape
    rows = _rows(new)
    out = None if begins else torch.empty(batch, heads, step.total, size)
    shared = {
        **_common(step, heads, size),
        **_new(rows, "NEW", pool, "POOL"),
        "OUT": address(out),
        "SEEN": step.total,
    }
    run(
        _MODULE,
        "extend",
        [
            _arguments({**shared, "FIRST": first, "LAST": last})
            for first, last in parts_of(
                batch * heads, batch * heads * step.total * size // 8, _PARTS
            )
        ],
    )
    return rows if out is None else out


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


def _new(new: torch.Tensor, name: str, pool: torch.Tensor, pool_name: str) -> dict[str, int]:
    return {**_strided(new, name), pool_name: address(pool)}


def _strided(tensor: torch.Tensor, name: str) -> dict[str, int]:
    short = name.removesuffix("_NEW")
    row, head, step, _ = tensor.stride()
    names = (f"{short}_ROW", f"{short}_HEAD", f"{short}_STEP")
    return {name: address(tensor), **dict(zip(names, (row, head, step), strict=True))}


def _arguments(values: Mapping[str, int]) -> np.ndarray:
    slots = np.zeros(paged_attention_slots.ARGUMENTS, dtype=np.int64)
    for name, value in values.items():
        slots[getattr(paged_attention_slots, name)] = value
    return slots
