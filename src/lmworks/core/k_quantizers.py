"""Codes and scales of super-blocks: several scales are tried for each group, the best is taken.

All arithmetic is float32 in ggml's order, so that the bytes are those of its reference code
(make_qkx2_quants, make_qx_quants and their callers in ggml-quants). Compiled by numba, cached on
disk, without the GIL.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

_SIZE = 256
_F = np.float32
_NOTHING = _F(1e-15)  # a group that is smaller is zero


@njit(cache=True, nogil=True, error_model="numpy")
def _code(value: Any, low: Any, high: Any) -> Any:
    return min(max(np.rint(value), low), high)  # halves to even; float32 throughout


@njit(cache=True, nogil=True, error_model="numpy")
def half(value: Any) -> Any:
    """The nearest float16 as a float32: numba has no float16. Infinite past their range."""
    _, exponent = math.frexp(value)
    step = _F(math.ldexp(1.0, max(exponent, -13) - 11))  # 10 bits after the first
    near = np.rint(_F(value) / step) * step
    return _F(near) if abs(near) <= _F(65504) else _F(near) * _F(np.inf)


@njit(cache=True, nogil=True, error_model="numpy")
def _fit_between_ends(x: Any, weights: Any, high: Any, first: Any, tries: Any, codes: Any) -> Any:
    """Scale and offset (>= 0, subtracted) of a group, its codes written."""
    least, most, total, total_x = x[0], x[0], weights[0], weights[0] * x[0]
    for i in range(1, len(x)):
        least, most = min(least, x[i]), max(most, x[i])
        total += weights[i]
        total_x += weights[i] * x[i]
    least = min(least, _F(0))
    if most == least:
        codes[:] = 0
        return _F(0), -least
    inverse = high / (most - least)
    scale = _F(1) / inverse
    best = _F(0)
    for i in range(len(x)):
        code = _code(inverse * (x[i] - least), _F(0), high)
        codes[i] = code
        off = scale * code + least - x[i]
        best += weights[i] * (off * off)
    for number in range(tries + 1):
        inverse = (first + _F(0.1) * _F(number) + high) / (most - least)
        sum_l, sum_l2, sum_xl = _F(0), _F(0), _F(0)
        for i in range(len(x)):
            code = _code(inverse * (x[i] - least), _F(0), high)
            sum_l += weights[i] * code
            sum_l2 += weights[i] * code * code
            sum_xl += weights[i] * code * x[i]
        determinant = total * sum_l2 - sum_l * sum_l
        if determinant <= _F(0):
            continue
        this_scale = (total * sum_xl - total_x * sum_l) / determinant
        this_least = (sum_l2 * total_x - sum_l * sum_xl) / determinant
        if this_least > _F(0):
            this_least, this_scale = _F(0), sum_xl / sum_l2
        error = _F(0)
        for i in range(len(x)):
            code = _code(inverse * (x[i] - least), _F(0), high)
            off = this_scale * code + this_least - x[i]
            error += weights[i] * (off * off)
        if error < best:
            for i in range(len(x)):
                codes[i] = _code(inverse * (x[i] - least), _F(0), high)
            best, scale, least = error, this_scale, this_least
    return scale, -least


@njit(cache=True, nogil=True, error_model="numpy")
def groups_between_ends(
    blocks: np.ndarray,
    high: int,
    first: Any,
    tries: int,
    codes: np.ndarray,
    floats: np.ndarray,
    small: np.ndarray,
) -> None:
    """Q4_K and Q5_K: 8 groups of 32 with a scale and an offset each.

    Args:
        blocks: (N, 256) float32. high: the largest code.
        first, tries: how far from the ends the first scale that is tried is, and how many more.
        codes: (N, 256) int8, written. floats: (N, 2) float32, written: d and the offsets' d.
        small: (N, 2, 8) int8, written: scales and offsets, 0 to 63.
    """
    high_f, weights = _F(high), np.empty(32, dtype=np.float32)
    scales, offsets = np.empty(8, dtype=np.float32), np.empty(8, dtype=np.float32)
    for n in range(len(blocks)):
        for j in range(8):
            x = blocks[n, 32 * j : 32 * j + 32]
            square = _F(0)
            for i in range(32):
                square += x[i] * x[i]
            average = np.sqrt(square / _F(32))
            for i in range(32):
                weights[i] = average + abs(x[i])
            scales[j], offsets[j] = _fit_between_ends(
                x, weights, high_f, first, tries, codes[n, 32 * j : 32 * j + 32]
            )
        for k, values in enumerate((scales, offsets)):
            largest = _F(0)
            for j in range(8):
                largest = max(largest, values[j])
            inverse = _F(63) / largest if largest > _F(0) else _F(0)
            for j in range(8):
                small[n, k, j] = min(_F(63), np.rint(inverse * values[j]))
            floats[n, k] = largest / _F(63)
        for j in range(8):
            scale = half(floats[n, 0]) * _F(small[n, 0, j])
            if scale == _F(0):
                continue
            offset = half(floats[n, 1]) * _F(small[n, 1, j])
            for i in range(32 * j, 32 * j + 32):
                codes[n, i] = _code((blocks[n, i] + offset) / scale, _F(0), high_f)


@njit(cache=True, nogil=True, error_model="numpy")
def _fit_around_zero(x: Any, codes: Any) -> Any:
    """The scale of a group of 16 in codes from -32 to 31, written; large numbers count more."""
    furthest, size = _F(0), _F(0)
    for i in range(len(x)):
        if abs(x[i]) > size:
            furthest, size = x[i], abs(x[i])
    if size < _NOTHING:
        return _F(0)
    scale, best = _F(0), _F(0)
    for place in range(-1, 19):
        number = 0 if place < 0 else place - 9  # the plain scale first, then nine on either side
        if place >= 0 and number == 0:
            continue
        inverse = -(_F(32) + _F(0.1) * _F(number)) / furthest
        sum_xl, sum_l2 = _F(0), _F(0)
        for i in range(len(x)):
            code = _code(inverse * x[i], _F(-32), _F(31))
            weight = x[i] * x[i]
            sum_xl += weight * x[i] * code
            sum_l2 += weight * code * code
        if place >= 0 and not (sum_l2 > _F(0) and sum_xl * sum_xl > best * sum_l2):
            continue
        scale = sum_xl / sum_l2 if sum_l2 != _F(0) else _F(0)
        best = scale * sum_xl
        for i in range(len(x)):
            codes[i] = _code(inverse * x[i], _F(-32), _F(31))
    return scale


@njit(cache=True, nogil=True, error_model="numpy")
def groups_around_zero(
    blocks: np.ndarray, codes: np.ndarray, d: np.ndarray, scales: np.ndarray
) -> None:
    """Q6_K: 16 groups of 16 with a scale each.

    Args:
        blocks: (N, 256) float32.
        codes: (N, 256), scales: (N, 16) int8, d: (N, 1) float32: written.
    """
    found = np.empty(16, dtype=np.float32)
    for n in range(len(blocks)):
        codes[n] = -32
        furthest, size = _F(0), _F(0)
        for j in range(16):
            group = slice(16 * j, 16 * j + 16)
            found[j] = _fit_around_zero(blocks[n, group], codes[n, group])
            if abs(found[j]) > size:
                furthest, size = found[j], abs(found[j])
        if size < _NOTHING:
            codes[n], scales[n], d[n, 0] = -32, 0, _F(0)  # bytes of zero
            continue
        inverse = _F(-128) / furthest
        d[n, 0] = _F(1) / inverse
        d_stored = half(d[n, 0])
        for j in range(16):
            scales[n, j] = min(_F(127), np.rint(inverse * found[j]))
            step = d_stored * _F(scales[n, j])
            for i in range(16 * j, 16 * j + 16):
                if step != _F(0):
                    codes[n, i] = _code(blocks[n, i] / step, _F(-32), _F(31))
