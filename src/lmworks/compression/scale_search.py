"""Scales of blocks for inputs that differ: several are tried, the least weighted error is taken.

Each weight x counts by the mean square of its input times sqrt(s^2 + x^2), where s^2 is the mean
square of its row: large weights count more, as in ggml's code for importance matrices. For types
with one scale (and shift) to a block of 32; super-blocks begin with the scales of `quantizers`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from lmworks.compression.block_rows import BlockRows
from lmworks.core.block_parts import FORMATS

_F = np.float32
_TRIES = 9  # on either side of the plain scale, a tenth of a code apart
SEARCHED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")


def search_scales(blocks: BlockRows, weight: np.ndarray, importance: np.ndarray | None) -> None:
    """Change `blocks` of `weight` (rows, n) in place; nothing for types that aren't searched."""
    if blocks.kind not in SEARCHED:
        return
    form = FORMATS[blocks.kind]
    importance = np.ones(weight.shape[1]) if importance is None else importance
    d, m = blocks.d.astype(np.float16), blocks.m.astype(np.float16)
    _search(
        np.ascontiguousarray(weight, dtype=np.float32), importance.astype(np.float32),
        blocks.codes, blocks.d, blocks.m, form.low, form.high, form.shifted,
    )  # fmt: skip
    for found, plain in ((blocks.d, d), (blocks.m, m)):
        with np.errstate(over="ignore"):
            half = found.astype(np.float16)
        found[...] = np.where(np.isfinite(half), half, plain)
    steps, shifts = blocks.grid()
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint((weight - shifts) / steps).clip(form.low, form.high)
    blocks.codes[...] = np.where(steps != 0, codes, blocks.codes)


@njit(cache=True, nogil=True, error_model="numpy")
def _search(
    weight: Any, importance: Any, codes: Any, d: Any, m: Any, low: Any, high: Any, shifted: Any
) -> None:
    count = d.shape[1]
    size = weight.shape[1] // count
    w = np.empty(size, dtype=np.float32)
    tried = np.empty(size, dtype=np.float32)
    for row in range(len(weight)):
        square = _F(0)
        for j in range(weight.shape[1]):
            square += weight[row, j] * weight[row, j]
        square /= _F(weight.shape[1])
        for block in range(count):
            x = weight[row, block * size : (block + 1) * size]
            total, total_x, furthest, least, most = _F(0), _F(0), _F(0), _F(np.inf), _F(-np.inf)
            for k in range(size):
                w[k] = importance[block * size + k] * np.sqrt(square + x[k] * x[k])
                total += w[k]
                total_x += w[k] * x[k]
                if abs(x[k]) > abs(furthest):
                    furthest = x[k]
                least, most = min(least, x[k]), max(most, x[k])
            span = (most - least) if shifted else furthest
            if span == _F(0) or total <= _F(0):
                continue
            best = _F(np.inf)
            for number in range(-_TRIES, _TRIES + 1):
                end = _F(high) if shifted else _F(low)
                inverse = (end + _F(0.1) * _F(number)) / span
                sum_c, sum_cc, sum_xc = _F(0), _F(0), _F(0)
                for k in range(size):
                    value = inverse * (x[k] - least) if shifted else inverse * x[k]
                    c = min(max(np.rint(value), _F(low)), _F(high))
                    tried[k] = c
                    sum_c += w[k] * c
                    sum_cc += w[k] * c * c
                    sum_xc += w[k] * x[k] * c
                if shifted:
                    determinant = total * sum_cc - sum_c * sum_c
                    if determinant <= _F(0):
                        continue
                    scale = (total * sum_xc - total_x * sum_c) / determinant
                    shift = (sum_cc * total_x - sum_c * sum_xc) / determinant
                else:
                    if sum_cc <= _F(0):
                        continue
                    scale, shift = sum_xc / sum_cc, _F(0)
                error = _F(0)
                for k in range(size):
                    off = scale * tried[k] + shift - x[k]
                    error += w[k] * off * off
                if error < best:
                    best = error
                    d[row, block], m[row, block] = scale, shift
