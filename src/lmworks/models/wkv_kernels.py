# uses: lmworks.models.kernel_vectors lmworks.models.kernel_slots
# kernels: forward backward
"""The WKV of RWKV-4, compiled: sixteen channels at a time, forward and backward.

A channel's state is three numbers: a numerator and a denominator, both divided by e to the power
of the third, which keeps them from overflowing. In rows of WIDTH.
"""

from __future__ import annotations

from numba import njit

from lmworks.models.kernel_slots import *
from lmworks.models.kernel_vectors import *


@njit(**OPTIONS)
def step(num, den, top, decay, k, v):
    """The state after a position, and how much of the old and of the new is in it."""
    moved = top + decay
    after = larger(moved, k)
    old, new = exp(moved - after), exp(k - after)
    return old * num + new * v, old * den + new, after, old, new


def forward(a):
    """y and the last state; the states at the start of each chunk where KEPT is not 0."""
    keys, values, y, width = floats(a[X]), floats(a[VALUES]), floats(a[Y]), a[WIDTH]
    first, last, kept = floats(a[FIRST_STATE]), floats(a[LAST_STATE]), floats(a[KEPT])
    for block in range(a[FIRST], a[LAST]):
        lane = block * LANES
        decay, bonus = load(floats(a[DECAY]), lane), load(floats(a[BONUS]), lane)
        num, den = load(first, lane), load(first, width + lane)
        top = load(first, 2 * width + lane)
        for t in range(a[LENGTH]):
            if a[KEPT] != 0 and t % CHUNK == 0:
                at = t // CHUNK * 3 * width + lane
                store(kept, at, num)
                store(kept, at + width, den)
                store(kept, at + 2 * width, top)
            k, v = load(keys, t * a[X_ROW] + lane), load(values, t * a[VALUES_ROW] + lane)
            # The position itself counts with `bonus` instead of a decay.
            high = larger(top, k + bonus)
            old, new = exp(top - high), exp(k + bonus - high)
            store(y, t * width + lane, (old * num + new * v) / (old * den + new))
            num, den, top, _, _ = step(num, den, top, decay, k, v)
        store(last, lane, num)
        store(last, width + lane, den)
        store(last, 2 * width + lane, top)
    return 0


@njit(**OPTIONS)
def again(a, lane, start, stop, states):
    """The states before each position of a chunk, from the one at its start."""
    keys, values, kept, width = floats(a[X]), floats(a[VALUES]), floats(a[KEPT]), a[WIDTH]
    decay = load(floats(a[DECAY]), lane)
    at = start // CHUNK * 3 * width + lane
    num, den, top = load(kept, at), load(kept, at + width), load(kept, at + 2 * width)
    for t in range(start, stop):
        place = (t - start) * 3 * LANES
        store(states, place, num)
        store(states, place + LANES, den)
        store(states, place + 2 * LANES, top)
        k, v = load(keys, t * a[X_ROW] + lane), load(values, t * a[VALUES_ROW] + lane)
        num, den, top, _, _ = step(num, den, top, decay, k, v)


def backward(a):
    """All gradients. G_STATE and G_FIRST are those of numerator and denominator, 2 rows of WIDTH.

    The third number is a scale: y and the true numerator do not depend on it, so it has no
    gradient of its own, and the gradients of the other two are kept at the scale of each state.
    """
    keys, values, width = floats(a[X]), floats(a[VALUES]), a[WIDTH]
    gy, gk, gv = floats(a[GY]), floats(a[GX]), floats(a[G_VALUES])
    states = floats(a[SCRATCH])
    for block in range(a[FIRST], a[LAST]):
        lane = block * LANES
        decay, bonus = load(floats(a[DECAY]), lane), load(floats(a[BONUS]), lane)
        g_num, g_den = load(floats(a[G_STATE]), lane), load(floats(a[G_STATE]), width + lane)
        g_decay, g_bonus = spread(0.0), spread(0.0)
        for chunk in range((a[LENGTH] - 1) // CHUNK, -1, -1):
            start = chunk * CHUNK
            stop = min(a[LENGTH], start + CHUNK)
            again(a, lane, start, stop, states)
            for t in range(stop - 1, start - 1, -1):
                k, v = load(keys, t * a[X_ROW] + lane), load(values, t * a[VALUES_ROW] + lane)
                place = (t - start) * 3 * LANES
                num, den = load(states, place), load(states, place + LANES)
                top = load(states, place + 2 * LANES)
                # Back through the state after this position.
                _, _, _, old, new = step(num, den, top, decay, k, v)
                fading = old * (g_num * num + g_den * den)
                g_decay = g_decay + fading
                gk_t = new * (g_num * v + g_den)
                gv_t = new * g_num
                g_num, g_den = old * g_num, old * g_den
                # Back through the result at this position.
                high = larger(top, k + bonus)
                old, new = exp(top - high), exp(k + bonus - high)
                below = old * den + new
                y = (old * num + new * v) / below
                g = load(gy, t * width + lane) / below
                g_own = g * new * (v - y)
                g_bonus = g_bonus + g_own
                store(gk, t * width + lane, gk_t + g_own)
                store(gv, t * width + lane, gv_t + g * new)
                g_num = g_num + g * old
                g_den = g_den - g * old * y
        store(floats(a[G_DECAY]), lane, g_decay)
        store(floats(a[G_BONUS]), lane, g_bonus)
        store(floats(a[G_FIRST]), lane, g_num)
        store(floats(a[G_FIRST]), width + lane, g_den)
    return 0
