"""The inner loop of a packed matrix: int8 codes times float32 activations, a scale per block.

Four rows are walked together, so that a loaded piece of `x` serves four sums; with one row LLVM
does not vectorise the loop. Indices are unsigned because numba's check for negative ones keeps the
loop scalar. Releases the GIL, cached on disk.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit

_U: Any = numba.uint64


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy")
def scaled_dots(
    codes: np.ndarray, scales: np.ndarray, x: np.ndarray, out: np.ndarray, first: int, last: int
) -> None:
    """out[r] = sum over blocks b of scales[r, b] * (codes[r, b] . x[b]) for first <= r < last.

    Args:
        codes: (rows, columns) int8. scales: (rows, columns / 32) float32.
        x: (columns,) float32. out: (rows,) float32, written.
    """
    size = _U(32)
    blocks = _U(scales.shape[1])
    r = _U(first)
    while r + _U(4) <= _U(last):
        r1, r2, r3 = r + _U(1), r + _U(2), r + _U(3)
        a0 = a1 = a2 = a3 = np.float32(0)
        for b in range(blocks):
            s0 = s1 = s2 = s3 = np.float32(0)
            for j in range(size):
                at = b * size + j
                value = x[at]
                s0 += np.float32(codes[r, at]) * value
                s1 += np.float32(codes[r1, at]) * value
                s2 += np.float32(codes[r2, at]) * value
                s3 += np.float32(codes[r3, at]) * value
            a0 += s0 * scales[r, b]
            a1 += s1 * scales[r1, b]
            a2 += s2 * scales[r2, b]
            a3 += s3 * scales[r3, b]
        out[r], out[r1], out[r2], out[r3] = a0, a1, a2, a3
        r += _U(4)
    while r < _U(last):
        a0 = np.float32(0)
        for b in range(blocks):
            s0 = np.float32(0)
            for j in range(size):
                s0 += np.float32(codes[r, b * size + j]) * x[b * size + j]
            a0 += s0 * scales[r, b]
        out[r] = a0
        r += _U(1)


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy")
def scaled_dots_of_four(
    codes: np.ndarray, scales: np.ndarray, x: np.ndarray, out: np.ndarray, first: int, last: int
) -> None:
    """out[n, r] as in `scaled_dots`, for four activations at once: a code is converted once.

    Args:
        x: (4, columns) float32. out: (4, rows) float32, columns first to last written.
    """
    size, n1, n2, n3 = _U(32), _U(1), _U(2), _U(3)
    n0 = _U(0)
    blocks = _U(scales.shape[1])
    for r in range(_U(first), _U(last)):
        a0 = a1 = a2 = a3 = np.float32(0)
        for b in range(blocks):
            s0 = s1 = s2 = s3 = np.float32(0)
            for j in range(size):
                at = b * size + j
                code = np.float32(codes[r, at])
                s0 += code * x[n0, at]
                s1 += code * x[n1, at]
                s2 += code * x[n2, at]
                s3 += code * x[n3, at]
            scale = scales[r, b]
            a0 += s0 * scale
            a1 += s1 * scale
            a2 += s2 * scale
            a3 += s3 * scale
        out[n0, r], out[n1, r], out[n2, r], out[n3, r] = a0, a1, a2, a3
