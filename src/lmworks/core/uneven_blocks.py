"""IQ4_NL and IQ4_XS: codes out of a table of 16 values that lie closer to each other around zero.

Several scales are tried for each group of 32, the one with the least error is taken; the error is
weighed by the importance of columns, or without one by the numbers' squares. Equal to the bit to
ggml's reference code (quantize_row_iq4_nl_impl).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from lmworks.core.k_quantizers import NOTHING, code_of, furthest_of, sum_of_squares, weigh

_F = np.float32
_GROUP = 32
_TRIES = 7  # on either side of the plain scale


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def _nearest(table: Any, value: Any) -> Any:
    """The entry of a rising table that is nearest to `value`; the upper one of two."""
    if value <= table[0]:
        return table[0]
    last = len(table) - 1
    if value >= table[last]:
        return table[last]
    low, high = 0, last
    while high - low > 1:
        middle = (low + high) // 2
        if value < table[middle]:
            high = middle
        else:
            low = middle
    return table[high - 1] if value - table[high - 1] < table[high] - value else table[high]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def _fit(x: Any, weights: Any, table: Any) -> Any:
    furthest = furthest_of(x)
    if abs(furthest) < NOTHING:
        return _F(0)
    d, best = _F(0), _F(0)
    for place in range(-_TRIES - 1, _TRIES + 1):
        if place < -_TRIES:  # the plain scale
            inverse = _F(1) / (-furthest / table[0])
        else:
            inverse = (_F(place) + table[0]) / furthest
        sum_xl, sum_l2 = _F(0), _F(0)
        for i in range(len(x)):
            value = _nearest(table, inverse * x[i])
            sum_xl += weights[i] * value * x[i]
            sum_l2 += weights[i] * value * value
        if place < -_TRIES:
            d = sum_xl / sum_l2 if sum_l2 > _F(0) else _F(0)
            best = d * sum_xl
        elif sum_l2 > _F(0) and sum_xl * sum_xl > best * sum_l2:
            d = sum_xl / sum_l2
            best = d * sum_xl
    return d


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def uneven_blocks(
    blocks: np.ndarray,
    importance: np.ndarray,
    table: np.ndarray,
    codes: np.ndarray,
    d: np.ndarray,
    scales: np.ndarray,
) -> None:
    """Codes and scales.

    Args:
        blocks: (N, 32) for IQ4_NL, (N, 256) for IQ4_XS, float32.
        importance: (columns,) float32 of a row, which is a whole number of blocks; () for none.
        table: (16,) float32, rising.
        codes: as blocks, int8, the table's values; d: (N, 1) float32; scales: (N, groups) int8, -32
            to 31, left alone where a block is one group. All written.
    """
    size = blocks.shape[1]
    groups = size // _GROUP
    weights, found = np.empty(_GROUP, dtype=np.float32), np.empty(groups, dtype=np.float32)
    for n in range(len(blocks)):
        at = n * size % max(len(importance), 1)
        square = _F(2) * sum_of_squares(blocks[n]) / _F(size)
        for j in range(groups):
            x = blocks[n, _GROUP * j : _GROUP * j + _GROUP]
            if len(importance):
                own = importance[at + _GROUP * j : at + _GROUP * j + _GROUP]
                weigh(x, own, square, weights)
            else:
                for i in range(_GROUP):
                    weights[i] = x[i] * x[i]
            found[j] = _fit(x, weights, table)
        d[n, 0] = found[0] if groups == 1 else -furthest_of(found) / _F(32)
        inverse = _F(1) / d[n, 0] if d[n, 0] != _F(0) else _F(0)
        for j in range(groups):
            step = inverse
            if groups > 1:
                scales[n, j] = code_of(inverse * found[j], _F(-32), _F(31))
                full = d[n, 0] * _F(scales[n, j])
                step = _F(1) / full if full != _F(0) else _F(0)
            for i in range(_GROUP * j, _GROUP * j + _GROUP):
                codes[n, i] = _nearest(table, step * blocks[n, i])
