# uses: lmworks.models.kernel_vectors lmworks.models.kernel_slots
# kernels: forward backward
"""Gated linear attention, compiled: the state of 32 values of a head at a time.

A call takes the heads from FIRST to LAST of one sequence, all of which share queries and keys.
The backward goes through the sequence once forwards, for the queries, and once backwards, for
keys and values. What a decay gets is what all later queries get minus what all later keys get,

    g[t] = g[t + 1] + q[t] dq[t] - k[t] dk[t]     (g: gradient of the decay's logarithm)

so no state has to be kept for it; every LONG_CHUNK positions the sum is begun anew from a state,
so that rounding does not add up.
"""

from __future__ import annotations

from numba import njit

from lmworks.models.kernel_slots import *
from lmworks.models.kernel_vectors import *

_PAIR = 2 * LANES


@njit(**OPTIONS)
def get(state, a, head, lane):
    """A state (STATES rows of 32) out of FIRST_STATE, LAST_STATE or their gradients."""
    width = a[HEAD_WIDTH]
    return floats(state + 4 * (head * a[STATES] * width + lane))


@njit(**OPTIONS)
def copy_rows(source, step, target, stride, count):
    """`count` rows of 32."""
    for n in range(count):
        store(target, n * stride, load(source, n * step))
        store(target, n * stride + LANES, load(source, n * step + LANES))


@njit(**OPTIONS)
def advance(a, state, head, lane, t, y):
    """The state after position t; what its query reads of it if `y` is 1."""
    q = floats(a[QUERIES] + 4 * t * a[QUERIES_ROW])
    k = floats(a[KEYS] + 4 * t * a[KEYS_ROW])
    decay = floats(a[DECAYS] + 4 * (t * a[DECAYS_ROW] + head * a[DECAYS_HEAD]))
    at = t * a[X_ROW] + head * a[HEAD_WIDTH] + lane
    v0, v1 = load(floats(a[X]), at), load(floats(a[X]), at + LANES)
    out0, out1 = spread(0.0), spread(0.0)
    for n in range(a[STATES]):
        d, k_n, q_n = spread(decay[n * a[DECAY_STEP]]), spread(k[n]), spread(q[n])
        s0 = d * load(state, n * _PAIR) + k_n * v0
        s1 = d * load(state, n * _PAIR + LANES) + k_n * v1
        store(state, n * _PAIR, s0)
        store(state, n * _PAIR + LANES, s1)
        out0, out1 = out0 + q_n * s0, out1 + q_n * s1
    if y == 1:
        place = t * a[WIDTH] + head * a[HEAD_WIDTH] + lane
        store(floats(a[Y]), place, out0)
        store(floats(a[Y]), place + LANES, out1)


def forward(a):
    """y and the last state."""
    width, count = a[HEAD_WIDTH], a[STATES]
    state = floats(a[SCRATCH])
    for head in range(a[FIRST], a[LAST]):
        for lane in range(0, width, _PAIR):
            copy_rows(get(a[FIRST_STATE], a, head, lane), width, state, _PAIR, count)
            for t in range(a[LENGTH]):
                advance(a, state, head, lane, t, 1)
            copy_rows(state, _PAIR, get(a[LAST_STATE], a, head, lane), width, count)
    return 0


@njit(**OPTIONS)
def read_forwards(a, state, ends, reads, head, lane):
    """The gradient of the queries; the state at each chunk's end into `ends`, q dq into `reads`."""
    count, step = a[STATES], a[DECAY_STEP]
    gq, gy = floats(a[G_QUERIES]), floats(a[GY])
    for t in range(a[LENGTH]):
        advance(a, state, head, lane, t, 0)
        q = floats(a[QUERIES] + 4 * t * a[QUERIES_ROW])
        at = t * a[WIDTH] + head * a[HEAD_WIDTH] + lane
        g0, g1 = load(gy, at), load(gy, at + LANES)
        for n in range(count):
            got = total(g0 * load(state, n * _PAIR) + g1 * load(state, n * _PAIR + LANES))
            gq[t * count + n] += got
            reads[t * (1 + step * (count - 1)) + n * step] += q[n] * got
        if (t + 1) % LONG_CHUNK == 0 or t + 1 == a[LENGTH]:
            for n in range(2 * count):
                store(ends, (t // LONG_CHUNK * 2 * count + n) * LANES, load(state, n * LANES))


@njit(**OPTIONS)
def sum_anew(a, g_state, ends, running, chunk):
    """The gradient that decays after a chunk get, from the state at its end."""
    count, step = a[STATES], a[DECAY_STEP]
    base = chunk * _PAIR * count
    for n in range(1 + step * (count - 1)):
        running[n] = 0.0
    for n in range(count):
        at = n * _PAIR
        low = load(g_state, at) * load(ends, base + at)
        high = load(g_state, at + LANES) * load(ends, base + at + LANES)
        running[n * step] += total(low + high)


@njit(**OPTIONS)
def write_backwards(a, g_state, reads, running, head, lane, t):
    """The gradients of value, key and decay at position t."""
    count, step = a[STATES], a[DECAY_STEP]
    q = floats(a[QUERIES] + 4 * t * a[QUERIES_ROW])
    k = floats(a[KEYS] + 4 * t * a[KEYS_ROW])
    decay = floats(a[DECAYS] + 4 * (t * a[DECAYS_ROW] + head * a[DECAYS_HEAD]))
    gk, at = floats(a[G_KEYS]), t * a[X_ROW] + head * a[HEAD_WIDTH] + lane
    v0, v1 = load(floats(a[X]), at), load(floats(a[X]), at + LANES)
    at = t * a[WIDTH] + head * a[HEAD_WIDTH] + lane
    gy0, gy1 = load(floats(a[GY]), at), load(floats(a[GY]), at + LANES)
    gv0, gv1 = spread(0.0), spread(0.0)
    size = 1 + step * (count - 1)
    for n in range(size):
        running[n] += reads[t * size + n]
    for n in range(count):
        d, k_n, q_n = spread(decay[n * step]), spread(k[n]), spread(q[n])
        g0 = load(g_state, n * _PAIR) + q_n * gy0
        g1 = load(g_state, n * _PAIR + LANES) + q_n * gy1
        gv0, gv1 = gv0 + k_n * g0, gv1 + k_n * g1
        got = total(g0 * v0 + g1 * v1)
        gk[t * count + n] += got
        running[n * step] -= k[n] * got
        store(g_state, n * _PAIR, d * g0)
        store(g_state, n * _PAIR + LANES, d * g1)
    store(floats(a[GX]), at, gv0)
    store(floats(a[GX]), at + LANES, gv1)
    g_decay = floats(a[G_DECAYS] + 4 * (t * a[WIDTH] // a[HEAD_WIDTH] + head) * size)
    for n in range(size):
        g_decay[n] += running[n]


def backward(a):
    """All gradients. G_QUERIES, G_KEYS and G_DECAYS are added to; the others are written."""
    width, count = a[HEAD_WIDTH], a[STATES]
    size = 1 + a[DECAY_STEP] * (count - 1)
    chunks = (a[LENGTH] + LONG_CHUNK - 1) // LONG_CHUNK
    state = floats(a[SCRATCH])
    ends = floats(a[SCRATCH] + 4 * _PAIR * count)
    running = floats(a[SCRATCH] + 4 * _PAIR * count * (1 + chunks))
    reads = floats(a[SCRATCH] + 4 * (_PAIR * count * (1 + chunks) + size))
    for head in range(a[FIRST], a[LAST]):
        for lane in range(0, width, _PAIR):
            for n in range(size * a[LENGTH]):
                reads[n] = 0.0
            copy_rows(get(a[FIRST_STATE], a, head, lane), width, state, _PAIR, count)
            read_forwards(a, state, ends, reads, head, lane)
            copy_rows(get(a[G_STATE], a, head, lane), width, state, _PAIR, count)
            for t in range(a[LENGTH] - 1, -1, -1):
                if (t + 1) % LONG_CHUNK == 0 or t + 1 == a[LENGTH]:
                    sum_anew(a, state, ends, running, t // LONG_CHUNK)
                write_backwards(a, state, reads, running, head, lane, t)
            copy_rows(state, _PAIR, get(a[G_FIRST], a, head, lane), width, count)
    return 0
