"""HQQ on the grid of a ggml type: scales and shifts that a few large errors can't pull away.

The error |W - W'|_p with p < 1 is split in two (half-quadratic): an E that takes up the few large
errors, by a shrinkage of what is missed, and a least-squares fit of scale and shift to W - E; in
turns, with E held closer each time. Published for the zero point alone; types without a shift have
their scale fitted. No calibration text is needed. Source: Badri & Shaji 2023, Half-Quadratic
Quantization of Large Machine Learning Models, https://mobiusml.github.io/hqq_blog/
"""

from __future__ import annotations

import numpy as np

from lmworks.compression.block_rows import BlockRows
from lmworks.compression.methods.base import Matrix
from lmworks.compression.methods.rtn import round_to_nearest

_POWER = 0.7
_TIGHTER = 1.01
_ROUNDS = 20
_ROWS_AT_ONCE = 2048


def round_half_quadratic(matrix: Matrix, kind: str) -> np.ndarray:
    """The bytes; a row of blocks whose error did not become less stays that of `rtn`."""
    raw = round_to_nearest(matrix, kind)
    blocks = BlockRows.of_bytes(raw, kind)
    for start in range(0, len(raw), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        _fit(blocks.rows(rows), np.ascontiguousarray(matrix.weight[rows], dtype=np.float32))
    return blocks.raw()


def _fit(blocks: BlockRows, weight: np.ndarray) -> None:
    best = _cost(blocks, weight)
    kept = blocks.copy()
    # The weight of the split, so that it means the same for weights of any size.
    closeness = 10.0 / max(float(np.abs(weight).mean()), 1e-12) ** (2 - _POWER)
    for _ in range(_ROUNDS):
        missed = weight - blocks.values()
        large = _shrunk(missed, closeness)
        _refit(blocks, weight - large)
        blocks.recode(weight)
        cost = _cost(blocks, weight)
        better = cost < best
        kept.take(blocks, better)
        best = np.where(better, cost, best)
        closeness *= _TIGHTER
    blocks.take(kept, np.ones_like(best, dtype=bool))


def _shrunk(missed: np.ndarray, closeness: float) -> np.ndarray:
    size = np.abs(missed)
    with np.errstate(divide="ignore"):
        less = size - size ** (_POWER - 1) / closeness
    shrunk: np.ndarray = np.sign(missed) * np.maximum(less, 0)
    return shrunk


def _cost(blocks: BlockRows, weight: np.ndarray) -> np.ndarray:
    """(rows, blocks): the p-norm to the p of what is missed."""
    missed = np.abs(weight - blocks.values()) ** _POWER
    cost: np.ndarray = missed.reshape(*blocks.d.shape, -1).sum(axis=-1)
    return cost


def _refit(blocks: BlockRows, wanted: np.ndarray) -> None:
    """The shift (or, without one, the scale) of each block that is nearest to `wanted`."""
    shape = (*blocks.d.shape, -1)
    group = blocks.codes.shape[1] // blocks.scales.shape[1]
    codes = (blocks.codes * np.repeat(blocks.scales, group, axis=1).astype(np.float32)).reshape(
        shape
    )
    target = wanted.reshape(shape)
    if blocks.limits[6]:
        along = np.repeat(blocks.offsets, group, axis=1).astype(np.float32).reshape(shape)
        _least_squares(blocks.m, along, target - blocks.d[..., None] * codes)
    else:
        _least_squares(blocks.d, codes, target)


def _least_squares(factor: np.ndarray, along: np.ndarray, target: np.ndarray) -> None:
    """The best float16 for each block, in place where it is one."""
    size = (along * along).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = ((along * target).sum(axis=-1) / size).astype(np.float16).astype(np.float32)
    good = np.isfinite(found) & (size > 0)
    factor[good] = found[good]
