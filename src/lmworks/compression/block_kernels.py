"""The inner loops of the block solver (`block_solver`): one block of columns in many rows.

A value is (d s) code + m o, as `core/block_parts` says. All is float32, compiled by numba, cached
on disk, without the GIL. Matrices are whole; `first` says where the block's columns begin, so that
nothing is copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from lmworks.core.k_quantizers import half

_F = np.float32
_FAST = {"reassoc", "contract", "nsz"}  # sums in any order; what is infinite stays so


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
def _nearest(value: Any, low: Any, high: Any, levels: Any) -> Any:
    """The nearest whole number from `low` to `high`, or of `levels` where there are some."""
    if len(levels) == 0:
        return min(max(np.rint(value), low), high)
    first, last = 0, len(levels) - 1
    while first < last:
        middle = (first + last) // 2
        if value > _F(0.5) * (levels[middle] + levels[middle + 1]):
            first = middle + 1
        else:
            last = middle
    return levels[first]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
def feed_back(
    left: np.ndarray,
    factor: np.ndarray,
    steps: np.ndarray,
    shifts: np.ndarray,
    codes: np.ndarray,
    missed: np.ndarray,
    ends: np.ndarray,
    levels: np.ndarray,
    first: int,
    start: int,
    stop: int,
) -> None:
    """Take the nearest codes column by column; the columns after it make up for what each missed.

    Args:
        left: (rows, n) float32: what is still wanted; changed in the block's columns.
        factor: (w, w) float32: the block's part of U, where U^T U is the inverse second moment.
        steps, shifts: (rows, n) float32: value = step code + shift.
        codes: (rows, n) int8, written in the block's columns.
        missed: (rows, w) float32, written: `missed @ U[block, behind]` is for the columns behind.
        ends: float32, the least and the largest code first. levels: float32, the codes that there
            are, in order; empty: all whole numbers.
    """
    width = missed.shape[1]
    for row in range(start, stop):
        line = left[row, first : first + width]
        for j in range(width):
            step, shift = steps[row, first + j], shifts[row, first + j]
            code = _F(codes[row, first + j])
            if step != _F(0):
                code = _nearest((line[j] - shift) / step, ends[0], ends[1], levels)
                codes[row, first + j] = np.int8(code)
            off = (line[j] - (step * code + shift)) / factor[j, j]
            missed[row, j] = off
            for k in range(j + 1, width):
                line[k] -= off * factor[j, k]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
def improve(
    off: np.ndarray,
    slope: np.ndarray,
    moment: np.ndarray,
    codes: np.ndarray,
    d: np.ndarray,
    m: np.ndarray,
    scales: np.ndarray,
    offsets: np.ndarray,
    moved: np.ndarray,
    ends: np.ndarray,
    levels: np.ndarray,
    block: int,
    start: int,
    stop: int,
) -> None:
    """Move codes, then scales and shifts, of one block in each row to where the error is least.

    Each moves alone while all else stays, so no step makes the error larger.

    Args:
        off: (rows, n) float32: value - wanted. slope: off @ moments, (rows, n). Both are changed in
            the block's columns.
        moment: (w, w) float32: second moments of the block's inputs.
        codes, d, m, scales, offsets: whole, as in `BlockRows`; the block's are changed.
        moved: (rows, w) float32, written: by how much `off` changed.
        ends: (7,) float32: least and largest code, scale, offset (equal ones: there are none), and
            whether there is an m. levels: as in `feed_back`.
    """
    width = moved.shape[1]
    first = block * width
    groups = scales.shape[1] // d.shape[1]
    group = width // groups
    along = np.empty(width, dtype=np.float32)
    for row in range(start, stop):
        o, s = off[row, first : first + width], slope[row, first : first + width]
        c = codes[row, first : first + width]
        gs = scales[row, block * groups : (block + 1) * groups]
        go = offsets[row, block * groups : (block + 1) * groups]
        for k in range(width):
            moved[row, k] = -o[k]
        for g in range(groups):
            step = d[row, block] * _F(gs[g])
            if step == _F(0):
                continue
            inverse = _F(1) / step
            for j in range(g * group, (g + 1) * group):
                now = _F(c[j])
                wanted = now - s[j] * inverse / moment[j, j]
                code = _nearest(wanted, ends[0], ends[1], levels)
                by = (code - now) * step
                if by != _F(0):
                    c[j] = np.int8(code)
                    o[j] += by
                    line = moment[j]
                    for k in range(width):
                        s[k] += by * line[k]
        if ends[2] < ends[3]:
            for g in range(groups):
                along[:] = _F(0)
                for k in range(g * group, (g + 1) * group):
                    along[k] = d[row, block] * _F(c[k])
                by = np.rint(_best(moment, along, s, g * group, (g + 1) * group))
                new = min(max(_F(gs[g]) + by, ends[2]), ends[3])
                _go(moment, along, new - _F(gs[g]), o, s, g * group, (g + 1) * group)
                gs[g] = np.int8(new)
        if ends[4] < ends[5]:
            for g in range(groups):
                along[:] = m[row, block]
                by = np.rint(_best(moment, along, s, g * group, (g + 1) * group))
                new = min(max(_F(go[g]) + by, ends[4]), ends[5])
                _go(moment, along, new - _F(go[g]), o, s, g * group, (g + 1) * group)
                go[g] = np.int8(new)
        for k in range(width):
            along[k] = _F(gs[k // group]) * _F(c[k])
        new = half(d[row, block] + _best(moment, along, s, 0, width))
        if np.isfinite(new) and new != _F(0):
            _go(moment, along, new - d[row, block], o, s, 0, width)
            d[row, block] = new
        if ends[6] != _F(0):
            for k in range(width):
                along[k] = _F(go[k // group])
            new = half(m[row, block] + _best(moment, along, s, 0, width))
            if np.isfinite(new):
                _go(moment, along, new - m[row, block], o, s, 0, width)
                m[row, block] = new
        for k in range(width):
            moved[row, k] += o[k]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
def _best(moment: Any, along: Any, slope: Any, start: Any, stop: Any) -> Any:
    """How far along a direction the error is least; 0 where it makes no difference."""
    down, curve = _F(0), _F(0)
    for k in range(start, stop):
        if along[k] != _F(0):
            down += along[k] * slope[k]
            part = _F(0)
            line = moment[k]
            for i in range(start, stop):
                part += line[i] * along[i]
            curve += along[k] * part
    return -down / curve if curve > _F(0) else _F(0)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
def _go(moment: Any, along: Any, by: Any, off: Any, slope: Any, start: Any, stop: Any) -> None:
    if by == _F(0):
        return
    for k in range(start, stop):
        if along[k] != _F(0):
            off[k] += by * along[k]
            line = moment[k]
            for i in range(len(slope)):
                slope[i] += by * along[k] * line[i]
