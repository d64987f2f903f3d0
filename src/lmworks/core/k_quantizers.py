"""Codes and scales of blocks that are searched for: several scales are tried, the best is taken.

All arithmetic is float32 in ggml's order, so that the bytes are those of its reference code
(make_qkx2_quants, make_qkx3_quants, make_qx_quants, make_q3_quants, make_qp_quants and their
callers in ggml-quants). Compiled by numba, cached on disk, without the GIL.

`importance` is (columns,) float32, the mean square of what each column is multiplied with, or
empty; with it, errors of columns that matter count more.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

_SIZE = 256
# fastmath=False is said outright: a function that is compiled first for a caller with fast
# arithmetic would take that over, be kept on disk, and be what all others get.
_F = np.float32
NOTHING = _F(1e-15)  # a group that is smaller is zero
_MOVES = 5  # rounds over the codes in which each may move


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def code_of(value: Any, low: Any, high: Any) -> Any:
    return min(max(np.rint(value), low), high)  # halves to even; float32 throughout


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def half(value: Any) -> Any:
    """The nearest float16 as a float32: numba has no float16. Infinite past their range."""
    _, exponent = math.frexp(value)
    step = _F(math.ldexp(1.0, max(exponent, -13) - 11))  # 10 bits after the first
    near = np.rint(_F(value) / step) * step
    return _F(near) if abs(near) <= _F(65504) else _F(near) * _F(np.inf)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def furthest_of(x: Any) -> Any:
    """The number furthest from zero, with its sign; the first of several."""
    furthest, size = _F(0), _F(0)
    for i in range(len(x)):
        if abs(x[i]) > size:
            furthest, size = x[i], abs(x[i])
    return furthest


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def sum_of_squares(x: Any) -> Any:
    total = _F(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    return total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def weigh(x: Any, importance: Any, square: Any, weights: Any) -> Any:
    """Write the weights of a group's errors; their sum. `square`: of the block or row, a mean."""
    total = _F(0)
    for i in range(len(x)):
        weights[i] = importance[i] * np.sqrt(square + x[i] * x[i])
        total += weights[i]
    return total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def _fit_between_ends(
    x: Any, weights: Any, high: Any, first: Any, step: Any, tries: Any, plain: bool, codes: Any
) -> Any:
    """Scale and offset (>= 0, subtracted) of a group, its codes written.

    The first scale that is tried is `first` codes from the ends, the next ones `step` further.
    `plain`: errors count as they are and not squared.
    """
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
        code = code_of(inverse * (x[i] - least), _F(0), high)
        codes[i] = code
        off = scale * code + least - x[i]
        best += weights[i] * (abs(off) if plain else off * off)
    for number in range(tries + 1):
        inverse = (first + step * _F(number) + high) / (most - least)
        sum_l, sum_l2, sum_xl = _F(0), _F(0), _F(0)
        for i in range(len(x)):
            code = code_of(inverse * (x[i] - least), _F(0), high)
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
            code = code_of(inverse * (x[i] - least), _F(0), high)
            off = this_scale * code + this_least - x[i]
            error += weights[i] * (abs(off) if plain else off * off)
        if error < best:
            for i in range(len(x)):
                codes[i] = code_of(inverse * (x[i] - least), _F(0), high)
            best, scale, least = error, this_scale, this_least
    return scale, -least


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def _fit_positive(x: Any, weights: Any, high: Any, codes: Any) -> Any:
    """One scale for numbers that are not negative, in codes from 0 to `high`, written."""
    most = _F(0)
    for i in range(len(x)):
        most = max(most, x[i])
    if most < NOTHING:
        codes[:] = 0
        return _F(0)
    inverse = high / most
    best = _F(0)
    for i in range(len(x)):
        off = x[i] - _F(1) / inverse * np.rint(inverse * x[i])
        best += weights[i] * off * off
    for number in range(-4, 5):
        if number == 0:
            continue
        tried = (_F(0.1) * _F(number) + high) / most
        scale = _F(1) / tried
        error = _F(0)
        for i in range(len(x)):
            off = x[i] - scale * min(high, np.rint(tried * x[i]))
            error += weights[i] * off * off
        if error < best:
            best, inverse = error, tried
    sum_xl, sum_l2 = _F(0), _F(0)
    for i in range(len(x)):
        code = min(high, np.rint(inverse * x[i]))
        codes[i] = code
        sum_xl += weights[i] * x[i] * code
        sum_l2 += weights[i] * code * code
    for _ in range(_MOVES):
        moved = False
        for i in range(len(x)):
            old = _F(codes[i])
            rest_xl = sum_xl - weights[i] * x[i] * old
            rest_l2 = sum_l2 - weights[i] * old * old
            if rest_xl <= _F(0) or rest_l2 <= _F(0):
                continue
            new = min(high, np.rint(x[i] * rest_l2 / rest_xl))
            if new == old:
                continue
            rest_xl += weights[i] * x[i] * new
            rest_l2 += weights[i] * new * new
            if rest_xl * rest_xl * sum_l2 > sum_xl * sum_xl * rest_l2:
                codes[i], sum_xl, sum_l2, moved = new, rest_xl, rest_l2, True
        if not moved:
            break
    return sum_xl / sum_l2 if sum_l2 > _F(0) else _F(0)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def groups_between_ends(
    blocks: np.ndarray,
    importance: np.ndarray,
    high: int,
    most: int,
    first: Any,
    tries: int,
    codes: np.ndarray,
    floats: np.ndarray,
    small: np.ndarray,
) -> None:
    """Q2_K, Q4_K and Q5_K: groups with a scale and an offset each.

    Args:
        blocks: (N, 256) float32. high: the largest code. most: the largest scale and offset.
        first, tries: without importance, how far from the ends the first scale that is tried is,
            and how many more.
        codes: (N, 256) int8, written. floats: (N, 2) float32, written: d and the offsets' d.
        small: (N, 2, groups) int8, written: scales and offsets.
    """
    groups = small.shape[2]
    size = _SIZE // groups
    few, high_f, most_f = size == 16, _F(high), _F(most)
    weights, sums = np.empty(size, dtype=np.float32), np.empty(groups, dtype=np.float32)
    scales, offsets = np.empty(groups, dtype=np.float32), np.empty(groups, dtype=np.float32)
    for n in range(len(blocks)):
        at = n * _SIZE % len(importance) if len(importance) else 0
        if len(importance):
            square = sum_of_squares(blocks[n])
            square = (square if few else _F(2) * square) / _F(_SIZE)
        for j in range(groups):
            group = slice(size * j, size * j + size)
            x = blocks[n, group]
            if len(importance):
                sums[j] = weigh(x, importance[at + size * j : at + size * (j + 1)], square, weights)
                scales[j], offsets[j] = _fit_between_ends(
                    x, weights, high_f, _F(-0.9), _F(0.05), 36, False, codes[n, group]
                )
                continue
            average = _F(0) if few else np.sqrt(sum_of_squares(x) / _F(size))
            for i in range(size):
                weights[i] = average + abs(x[i])
            scales[j], offsets[j] = _fit_between_ends(
                x, weights, high_f, first, _F(0.1), tries, few, codes[n, group]
            )
        for k, values in enumerate((scales, offsets)):
            if len(importance):
                floats[n, k] = _fit_positive(values, sums, most_f, small[n, k])
                continue
            largest = _F(0)
            for j in range(groups):
                largest = max(largest, values[j])
            inverse = most_f / largest if largest > _F(0) else _F(0)
            for j in range(groups):
                small[n, k, j] = min(most_f, np.rint(inverse * values[j]))
            floats[n, k] = largest / most_f
        for j in range(groups):
            scale = half(floats[n, 0]) * _F(small[n, 0, j])
            if scale == _F(0):
                continue
            offset = half(floats[n, 1]) * _F(small[n, 1, j])
            for i in range(size * j, size * j + size):
                codes[n, i] = code_of((blocks[n, i] + offset) / scale, _F(0), high_f)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def _fit_around_zero(x: Any, weights: Any, middle: Any, codes: Any) -> Any:
    """The scale of a group in codes from -middle to middle - 1, written."""
    furthest = furthest_of(x)
    if abs(furthest) < NOTHING:
        codes[:] = -middle
        return _F(0)
    scale, best = _F(0), _F(0)
    for place in range(-1, 19):
        number = 0 if place < 0 else place - 9  # the plain scale first, then nine on either side
        if place >= 0 and number == 0:
            continue
        inverse = -(middle + _F(0.1) * _F(number)) / furthest
        sum_xl, sum_l2 = _F(0), _F(0)
        for i in range(len(x)):
            code = code_of(inverse * x[i], -middle, middle - _F(1))
            sum_xl += weights[i] * x[i] * code
            sum_l2 += weights[i] * code * code
        if place >= 0 and not (sum_l2 > _F(0) and sum_xl * sum_xl > best * sum_l2):
            continue
        scale = sum_xl / sum_l2 if sum_l2 != _F(0) else _F(0)
        best = scale * sum_xl
        for i in range(len(x)):
            codes[i] = code_of(inverse * x[i], -middle, middle - _F(1))
    return scale


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def _fit_by_moves(x: Any, middle: Any, codes: Any) -> Any:
    """As `_fit_around_zero`, weighed by squares: from the plain scale, each code moves alone."""
    furthest = furthest_of(x)
    if abs(furthest) < NOTHING:
        codes[:] = -middle
        return _F(0)
    inverse, sum_xl, sum_l2 = -middle / furthest, _F(0), _F(0)
    for i in range(len(x)):
        code = code_of(inverse * x[i], -middle, middle - _F(1))
        codes[i] = code
        sum_xl += x[i] * x[i] * x[i] * code
        sum_l2 += x[i] * x[i] * code * code
    for _ in range(_MOVES):
        moved = False
        for i in range(len(x)):
            weight, old = x[i] * x[i], _F(codes[i])
            rest_xl = sum_xl - weight * x[i] * old
            if rest_xl <= _F(0):
                continue
            rest_l2 = sum_l2 - weight * old * old
            new = code_of(x[i] * rest_l2 / rest_xl, -middle, middle - _F(1))
            if new == old:
                continue
            rest_xl += weight * x[i] * new
            rest_l2 += weight * new * new
            if rest_l2 > _F(0) and rest_xl * rest_xl * sum_l2 > sum_xl * sum_xl * rest_l2:
                codes[i], sum_xl, sum_l2, moved = new, rest_xl, rest_l2, True
        if not moved:
            break
    return sum_xl / sum_l2 if sum_l2 > _F(0) else _F(0)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def groups_around_zero(
    blocks: np.ndarray,
    importance: np.ndarray,
    middle: int,
    codes: np.ndarray,
    d: np.ndarray,
    scales: np.ndarray,
) -> None:
    """Q3_K and Q6_K: 16 groups of 16 with a scale each, which may be negative.

    Args:
        blocks: (N, 256) float32. middle: codes go from -middle to middle - 1.
        codes: (N, 256), scales: (N, 16) int8, d: (N, 1) float32: written.
    """
    found, sums = np.empty(16, dtype=np.float32), np.empty(16, dtype=np.float32)
    weights, middle_f, three = np.empty(16, dtype=np.float32), _F(middle), middle == 4
    low = _F(-32) if three else _F(-128)
    for n in range(len(blocks)):
        at = n * _SIZE % len(importance) if len(importance) else 0
        square = _F(2) * sum_of_squares(blocks[n]) / _F(_SIZE)
        for j in range(16):
            group = slice(16 * j, 16 * j + 16)
            x = blocks[n, group]
            if three and not len(importance):
                found[j] = _fit_by_moves(x, middle_f, codes[n, group])
            else:
                if not len(importance):
                    weights[:] = x * x
                elif three:
                    here = importance[at + 16 * j : at + 16 * j + 16]
                    sums[j] = weigh(x, here, square, weights)
                else:
                    weights[:] = importance[at + 16 * j : at + 16 * j + 16]
                found[j] = _fit_around_zero(x, weights, middle_f, codes[n, group])
        furthest = furthest_of(found)
        if three and len(importance):
            d[n, 0] = _fit_around_zero(found, sums, _F(32), scales[n])
        elif furthest == _F(0) or (not three and abs(furthest) < NOTHING):
            codes[n], scales[n], d[n, 0] = -middle, low if three else _F(0), _F(0)  # zero bytes
            continue
        else:
            inverse = low / furthest
            d[n, 0] = _F(1) / inverse
            for j in range(16):
                scales[n, j] = code_of(inverse * found[j], low, -low - _F(1))
        d_stored = half(d[n, 0])
        for j in range(16):
            step = d_stored * _F(scales[n, j])
            for i in range(16 * j, 16 * j + 16):
                if step != _F(0):
                    codes[n, i] = code_of(blocks[n, i] / step, -middle_f, middle_f - _F(1))


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def weighed_around_zero(
    rows: np.ndarray, importance: np.ndarray, middle: int, codes: np.ndarray, d: np.ndarray
) -> None:
    """Q4_0 and Q5_0 with importance: blocks of 32 with a scale each.

    Args:
        rows: (R, columns) float32. middle: codes go from -middle to middle - 1.
        codes: (R, columns) int8, d: (R, columns / 32) float32: written.
    """
    weights = np.empty(32, dtype=np.float32)
    for n in range(len(rows)):
        square = sum_of_squares(rows[n]) / _F(rows.shape[1])
        for j in range(d.shape[1]):
            block = slice(32 * j, 32 * j + 32)
            weigh(rows[n, block], importance[block], square, weights)
            d[n, j] = _fit_around_zero(rows[n, block], weights, _F(middle), codes[n, block])


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def weighed_between_ends(
    rows: np.ndarray,
    importance: np.ndarray,
    high: int,
    codes: np.ndarray,
    d: np.ndarray,
    m: np.ndarray,
) -> None:
    """Q4_1 and Q5_1 with importance: blocks of 32 with a scale and a shift each.

    Args:
        rows: (R, columns) float32. high: the largest code.
        codes: (R, columns) int8, d, m: (R, columns / 32) float32: written.
    """
    weights = np.empty(32, dtype=np.float32)
    for n in range(len(rows)):
        square = sum_of_squares(rows[n]) / _F(rows.shape[1])
        for j in range(d.shape[1]):
            block = slice(32 * j, 32 * j + 32)
            weigh(rows[n, block], importance[block], square, weights)
            d[n, j], offset = _fit_between_ends(
                rows[n, block], weights, _F(high), _F(-0.9), _F(0.05), 36, False, codes[n, block]
            )
            m[n, j] = -offset
