"""Rows of quantised blocks whose products come as near to wanted ones as codes and scales allow.

A row t of float weights is to become a row q of blocks so that (q - t) H (q - t)^T is small, where
H is the second moment of the inputs that the row is multiplied with: what the layer puts out is to
stay right, not the weights. Each row is solved on its own, in four kinds of steps:

1. Error feedback: column by column the nearest code is taken and what it missed is made up for by
   the columns after it, over the inverse of H (Frantar et al. 2022, GPTQ, 2210.17323).
2. Single codes: each moves to where the error is least given all others, and again, while any
   moves (coordinate descent; Behdin et al. 2023, QuantEase, arXiv 2309.01885).
3. Scales and shifts: the best float16 for a block's d and m, the best whole number for a group's.
4. Without the first step, from the codes that are there: the better of the two results is kept, so
   it is never worse than leaving the row as it was.

Compiled by numba, cached on disk, without the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from lmworks.core.k_quantizers import half

_F = np.float32
ROUNDS = 3  # of codes and scales in turns
_SWEEPS = 4  # over the codes in a round, at most


@njit(cache=True, nogil=True, error_model="numpy")
def solve_rows(
    target: np.ndarray,
    hessian: np.ndarray,
    feedback: np.ndarray,
    codes: np.ndarray,
    d: np.ndarray,
    m: np.ndarray,
    scales: np.ndarray,
    offsets: np.ndarray,
    limits: np.ndarray,
    errors: np.ndarray,
    start: int,
    stop: int,
) -> None:
    """Solve the rows `start` to `stop`.

    Args:
        target: (rows, n) float32. hessian: (n, n) float32, symmetric.
        feedback: (n, n) float32: the upper factor U of its inverse, U^T U.
        codes: (rows, n) int8. d, m: (rows, n / size) float32. scales, offsets: (rows, n / group)
            int8. All are where to start from and are overwritten; m of zeros and scales of ones
            stand for what a type does not have.
        limits: (7,) int64: least and largest code, scale, offset (equal ones: not solved for), and
            then whether m is solved for.
        errors: (rows, 2) float64, written: before (with the codes given) and after.
    """
    n = target.shape[1]
    size, group = n // d.shape[1], n // scales.shape[1]
    for row in range(start, stop):
        wanted = target[row]
        off, slope = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float32)
        best = np.inf
        kept_codes = codes[row].copy()
        kept_d, kept_m = d[row].copy(), m[row].copy()
        kept_scales, kept_offsets = scales[row].copy(), offsets[row].copy()
        for first in range(2):  # from the codes that are there, then from those of the feedback
            c, dd, mm = codes[row].copy(), d[row].copy(), m[row].copy()
            s, o = scales[row].copy(), offsets[row].copy()
            if first == 1:
                _feed_back(wanted, feedback, c, dd, mm, s, o, limits, size, group)
            error = _measure(wanted, hessian, c, dd, mm, s, o, size, group, off, slope)
            if first == 0:
                errors[row, 0] = error
            for _ in range(ROUNDS):
                for _sweep in range(_SWEEPS):
                    if _move_codes(hessian, c, dd, s, limits, size, group, off, slope) == 0:
                        break
                _move_scales(hessian, c, dd, mm, s, o, limits, size, group, off, slope)
            _move_codes(hessian, c, dd, s, limits, size, group, off, slope)
            error = _measure(wanted, hessian, c, dd, mm, s, o, size, group, off, slope)
            if error < best:
                best = error
                kept_codes, kept_d, kept_m, kept_scales, kept_offsets = c, dd, mm, s, o
        errors[row, 1] = best
        codes[row], d[row], m[row] = kept_codes, kept_d, kept_m
        scales[row], offsets[row] = kept_scales, kept_offsets


@njit(cache=True, nogil=True, error_model="numpy")
def _value(c: Any, d: Any, m: Any, s: Any, o: Any, j: Any, size: Any, group: Any) -> Any:
    step = d[j // size] * _F(s[j // group])
    return step * _F(c[j]) + m[j // size] * _F(o[j // group])


@njit(cache=True, nogil=True, error_model="numpy")
def _measure(
    wanted: Any, h: Any, c: Any, d: Any, m: Any, s: Any, o: Any, size: Any, group: Any,
    off: Any, slope: Any,
) -> Any:  # fmt: skip
    """The error, with `off` = q - t and `slope` = H off written."""
    n = len(wanted)
    for j in range(n):
        off[j] = _value(c, d, m, s, o, j, size, group) - wanted[j]
    slope[:] = _F(0)
    for j in range(n):
        if off[j] != _F(0):
            _add(slope, h, j, off[j])
    total = 0.0
    for j in range(n):
        total += np.float64(off[j]) * np.float64(slope[j])
    return total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def _add(slope: Any, h: Any, j: Any, by: Any) -> None:
    line = h[j]
    for k in range(len(slope)):
        slope[k] += by * line[k]


@njit(cache=True, nogil=True, error_model="numpy")
def _feed_back(
    wanted: Any, u: Any, c: Any, d: Any, m: Any, s: Any, o: Any, limits: Any, size: Any, group: Any
) -> None:
    left = wanted.copy()
    for j in range(len(left)):
        step = d[j // size] * _F(s[j // group])
        shift = m[j // size] * _F(o[j // group])
        code = _F(c[j])
        if step != _F(0):
            code = np.rint((left[j] - shift) / step)
            code = min(max(code, _F(limits[0])), _F(limits[1]))
            c[j] = code
        missed = (left[j] - (step * code + shift)) / u[j, j]
        line = u[j]
        for k in range(j + 1, len(left)):
            left[k] -= missed * line[k]


@njit(cache=True, nogil=True, error_model="numpy")
def _move_codes(
    h: Any, c: Any, d: Any, s: Any, limits: Any, size: Any, group: Any, off: Any, slope: Any
) -> Any:
    moved = 0
    for j in range(len(off)):
        step = d[j // size] * _F(s[j // group])
        if step == _F(0):
            continue
        by = np.rint(-slope[j] / (h[j, j] * step))
        code = min(max(_F(c[j]) + by, _F(limits[0])), _F(limits[1]))
        by = code - _F(c[j])
        if by != _F(0):
            c[j] = code
            off[j] += by * step
            _add(slope, h, j, by * step)
            moved += 1
    return moved


@njit(cache=True, nogil=True, error_model="numpy")
def _move_scales(
    h: Any, c: Any, d: Any, m: Any, s: Any, o: Any, limits: Any, size: Any, group: Any,
    off: Any, slope: Any,
) -> None:  # fmt: skip
    along = np.empty(size, dtype=np.float32)
    for block in range(len(d)):
        first = block * size
        if limits[2] < limits[3]:
            for g in range(first // group, (first + size) // group):
                for k in range(group):
                    along[k] = d[block] * _F(c[g * group + k])
                by = np.rint(_best_move(h, g * group, along[:group], slope))
                by = min(max(_F(s[g]) + by, _F(limits[2])), _F(limits[3])) - _F(s[g])
                s[g] += np.int8(by)
                _move(h, g * group, along[:group], by, off, slope)
        if limits[4] < limits[5]:
            for g in range(first // group, (first + size) // group):
                along[:group] = m[block]
                by = np.rint(_best_move(h, g * group, along[:group], slope))
                by = min(max(_F(o[g]) + by, _F(limits[4])), _F(limits[5])) - _F(o[g])
                o[g] += np.int8(by)
                _move(h, g * group, along[:group], by, off, slope)
        for k in range(size):
            along[k] = _F(s[(first + k) // group]) * _F(c[first + k])
        new = half(d[block] + _best_move(h, first, along, slope))
        if np.isfinite(new) and new != _F(0):
            _move(h, first, along, new - d[block], off, slope)
            d[block] = new
        if limits[6]:
            for k in range(size):
                along[k] = _F(o[(first + k) // group])
            new = half(m[block] + _best_move(h, first, along, slope))
            if np.isfinite(new):
                _move(h, first, along, new - m[block], off, slope)
                m[block] = new


@njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def _best_move(h: Any, first: Any, along: Any, slope: Any) -> Any:
    """How far along a direction the error is least; 0 where it makes no difference."""
    down, curve = _F(0), _F(0)
    for k in range(len(along)):
        down += along[k] * slope[first + k]
        if along[k] != _F(0):
            line = h[first + k, first : first + len(along)]
            part = _F(0)
            for i in range(len(along)):
                part += line[i] * along[i]
            curve += along[k] * part
    return -down / curve if curve > _F(0) else _F(0)


@njit(cache=True, nogil=True, error_model="numpy")
def _move(h: Any, first: Any, along: Any, by: Any, off: Any, slope: Any) -> None:
    if by == _F(0):
        return
    for k in range(len(along)):
        if along[k] != _F(0):
            off[first + k] += by * along[k]
            _add(slope, h, first + k, by * along[k])
