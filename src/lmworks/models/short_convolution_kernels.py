# uses: lmworks.models.kernel_vectors lmworks.models.kernel_slots
# kernels: forward backward
"""A causal convolution of each channel by itself, compiled; forward and backward.

FIRST_STATE holds the TAPS - 1 positions before the first, in rows of WIDTH.
"""

from __future__ import annotations

from numba import njit

from lmworks.models.kernel_slots import *
from lmworks.models.kernel_vectors import *


@njit(**OPTIONS)
def result(a, lane, t):
    """The sum over the taps at one position, before the activation."""
    x, before, weight, taps = floats(a[X]), floats(a[FIRST_STATE]), floats(a[WEIGHT]), a[TAPS]
    out = spread(0.0)
    if a[BIAS] != 0:
        out = load(floats(a[BIAS]), lane)
    for k in range(taps):
        s = t - (taps - 1) + k
        if s >= 0:
            value = load(x, s * a[X_ROW] + lane)
        else:
            value = load(before, (s + taps - 1) * a[WIDTH] + lane)
        out = out + load(weight, k * a[WIDTH] + lane) * value
    return out


def forward(a):
    """y at every position."""
    y = floats(a[Y])
    for block in range(a[FIRST], a[LAST]):
        lane = block * LANES
        for t in range(a[LENGTH]):
            out = result(a, lane, t)
            if a[SILU] != 0:
                out = out * sigmoid(out)
            store(y, t * a[WIDTH] + lane, out)
    return 0


@njit(**OPTIONS)
def add_to(target, at, value):
    """Add a vector to the numbers from `target[at]` on."""
    store(target, at, load(target, at) + value)


def backward(a):
    """All gradients are added to what lies there."""
    x, before, weight = floats(a[X]), floats(a[FIRST_STATE]), floats(a[WEIGHT])
    gy, gx, g_first = floats(a[GY]), floats(a[GX]), floats(a[G_FIRST])
    g_weight, g_bias, taps, width = floats(a[G_WEIGHT]), floats(a[G_BIAS]), a[TAPS], a[WIDTH]
    for block in range(a[FIRST], a[LAST]):
        lane = block * LANES
        for t in range(a[LENGTH]):
            g = load(gy, t * width + lane)
            if a[SILU] != 0:
                out = result(a, lane, t)
                s = sigmoid(out)
                g = g * s * (spread(1.0) + out * (spread(1.0) - s))
            if a[BIAS] != 0:
                add_to(g_bias, lane, g)
            for k in range(taps):
                s_t = t - (taps - 1) + k
                tap = k * width + lane
                if s_t >= 0:
                    add_to(gx, s_t * width + lane, g * load(weight, tap))
                    add_to(g_weight, tap, g * load(x, s_t * a[X_ROW] + lane))
                else:
                    at = (s_t + taps - 1) * width + lane
                    add_to(g_first, at, g * load(weight, tap))
                    add_to(g_weight, tap, g * load(before, at))
    return 0
