"""What is done to a row of numbers between products: norms and activations, in vectors."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from lmworks.models import fused_slots as f
from lmworks.models.attention_vectors import as_float
from lmworks.models.kernel_vectors import *
from lmworks.models.packed_vectors import absolute


@njit(**OPTIONS)
def norm_row(norm, x, size, out):
    """RMSNorm, LayerNorm or nothing, of one row; `out` may be `x`."""
    kind = norm[f.NORM_KIND]
    if kind == f.NO_NORM:
        for at in range(0, size, LANES):
            store(out, at, load(x, at))
        return
    mean = np.float32(0.0)
    if kind == f.LAYER:
        sums = spread(np.float32(0.0))
        for at in range(0, size, LANES):
            sums = sums + load(x, at)
        mean = total(sums) / np.float32(size)
    squares = spread(np.float32(0.0))
    for at in range(0, size, LANES):
        rest = load(x, at) - spread(mean)
        squares = squares + rest * rest
    variance = total(squares) / np.float32(size)
    inverse = np.float32(1.0) / np.float32(math.sqrt(variance + as_float(norm[f.NORM_EPS])))
    weight, first = floats(norm[f.NORM_WEIGHT]), spread(np.float32(norm[f.NORM_OFFSET]))
    for at in range(0, size, LANES):
        found = (load(x, at) - spread(mean)) * spread(inverse) * (load(weight, at) + first)
        if norm[f.NORM_BIAS] != 0:
            found = found + load(floats(norm[f.NORM_BIAS]), at)
        store(out, at, found)


@njit(**OPTIONS)
def add_rows(x, row, size):
    """x += row."""
    for at in range(0, size, LANES):
        store(x, at, load(x, at) + load(row, at))


@njit(**OPTIONS)
def tanh(x):
    """1 - 2 / (exp(2x) + 1) in each lane: some 1e-7 off, in all."""
    one = spread(np.float32(1.0))
    return one - spread(np.float32(2.0)) / (exp(x + x) + one)


@njit(**OPTIONS)
def gelu(x):
    """x times the normal distribution's share below it, within 2e-7 of x.

    Source: Abramowitz and Stegun 1964, formula 7.1.26.
    """
    one = spread(np.float32(1.0))
    z = absolute(x) * spread(np.float32(0.7071067811865476))
    t = one / (one + z * spread(np.float32(0.3275911)))
    sums = spread(np.float32(1.061405429)) * t - spread(np.float32(1.453152027))
    sums = sums * t + spread(np.float32(1.421413741))
    sums = sums * t - spread(np.float32(0.284496736))
    sums = (sums * t + spread(np.float32(0.254829592))) * t
    tail = spread(np.float32(0.5)) * sums * exp(spread(np.float32(0.0)) - z * z)
    return larger(x, spread(np.float32(0.0))) - absolute(x) * tail


@njit(**OPTIONS)
def activated(kind, x):
    """The activation of a number of `fused_slots`, in each lane."""
    nothing = spread(np.float32(0.0))
    if kind == f.SILU:
        return x * sigmoid(x)
    if kind == f.GELU:
        return gelu(x)
    if kind == f.GELU_TANH:
        inner = x + spread(np.float32(0.044715)) * x * x * x
        return x * sigmoid(inner * spread(np.float32(1.5957691216057308)))
    if kind == f.GELU_QUICK:
        return x * sigmoid(x * spread(np.float32(1.702)))
    if kind == f.RELU:
        return larger(nothing, x)
    if kind == f.RELU_SQUARED:
        above = larger(nothing, x)
        return above * above
    return tanh(x)
