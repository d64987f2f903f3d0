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
def read_position(a, head, lane, t):
    """Query, key, decay and value of position t."""
    q = floats(a[QUERIES] + 4 * t * a[QUERIES_ROW])
    k = floats(a[KEYS] + 4 * t * a[KEYS_ROW])
    decay = floats(a[DECAYS] + 4 * (t * a[DECAYS_ROW] + head * a[DECAYS_HEAD]))
    at = t * a[X_ROW] + head * a[HEAD_WIDTH] + lane
    return q, k, decay, load(floats(a[X]), at), load(floats(a[X]), at + LANES)


@njit(**OPTIONS)
def advance(state, n, decay, k_n, v0, v1):
    """One number of the key: its row of the state after a position."""
    d, k = spread(decay), spread(k_n)
    s0 = d * load(state, n * _PAIR) + k * v0
    s1 = d * load(state, n * _PAIR + LANES) + k * v1
    store(state, n * _PAIR, s0)
    store(state, n * _PAIR + LANES, s1)
    return s0, s1


def forward(a):
    """y and the last state."""
    width, count, step = a[HEAD_WIDTH], a[STATES], a[DECAY_STEP]
    state, y = floats(a[SCRATCH]), floats(a[Y])
    for head in range(a[FIRST], a[LAST]):
        for lane in range(0, width, _PAIR):
            copy_rows(get(a[FIRST_STATE], a, head, lane), width, state, _PAIR, count)
            for t in range(a[LENGTH]):
                q, k, decay, v0, v1 = read_position(a, head, lane, t)
                y0, y1 = spread(0.0), spread(0.0)
                for n in range(count):
                    s0, s1 = advance(state, n, decay[n * step], k[n], v0, v1)
                    q_n = spread(q[n])
                    y0, y1 = y0 + q_n * s0, y1 + q_n * s1
                at = t * a[WIDTH] + head * width + lane
                store(y, at, y0)
                store(y, at + LANES, y1)
            copy_rows(state, _PAIR, get(a[LAST_STATE], a, head, lane), width, count)
    return 0


@njit(**OPTIONS)
def read_row(state, n, decay, step, k, q, v0, v1, g0, g1, y):
    """One row of the state, moved on: what the query's number n gets, y with it added."""
    s0, s1 = advance(state, n, decay[n * step], k[n], v0, v1)
    got = g0 * s0 + g1 * s1
    return got, y + spread(q[n]) * got


@njit(**OPTIONS)
def read_forwards(a, state, ends, reads, head, lane):
    """The gradient of the queries; the state at each chunk's end into `ends`, q dq into `reads`."""
    count, step, gy = a[STATES], a[DECAY_STEP], floats(a[GY])
    for t in range(a[LENGTH]):
        q, k, decay, v0, v1 = read_position(a, head, lane, t)
        at = t * a[WIDTH] + head * a[HEAD_WIDTH] + lane
        g0, g1 = load(gy, at), load(gy, at + LANES)
        gq = floats(a[G_QUERIES] + 4 * t * count)
        row = floats(a[ROW])
        clear(row, count)
        y = spread(0.0)
        for n in range(0, count, 4):
            r0, y = read_row(state, n, decay, step, k, q, v0, v1, g0, g1, y)
            r1, y = read_row(state, n + 1, decay, step, k, q, v0, v1, g0, g1, y)
            r2, y = read_row(state, n + 2, decay, step, k, q, v0, v1, g0, g1, y)
            r3, y = read_row(state, n + 3, decay, step, k, q, v0, v1, g0, g1, y)
            add_totals(row, n, r0, r1, r2, r3)
        for n in range(count):
            gq[n] += row[n]
        if step == 1:
            for n in range(count):
                reads[t * count + n] = q[n] * row[n]
        else:
            reads[t] = total(y)
        if (t + 1) % LONG_CHUNK == 0 or t + 1 == a[LENGTH]:
            for n in range(2 * count):
                store(ends, (t // LONG_CHUNK * 2 * count + n) * LANES, load(state, n * LANES))


@njit(**OPTIONS)
def clear(row, count):
    """Zeros."""
    for n in range(count):
        row[n] = 0.0


@njit(**OPTIONS)
def sum_anew(a, g_state, ends, running, chunk):
    """The gradient that decays after a chunk get, from the state at its end."""
    count, step = a[STATES], a[DECAY_STEP]
    base = chunk * _PAIR * count
    clear(running, 1 + step * (count - 1))
    for n in range(count):
        at = n * _PAIR
        low = load(g_state, at) * load(ends, base + at)
        high = load(g_state, at + LANES) * load(ends, base + at + LANES)
        running[n * step] += total(low + high)


@njit(**OPTIONS)
def write_row(g_state, n, decay, step, k, q, v0, v1, gy0, gy1, gv0, gv1):
    """One row of the state's gradient, moved back: what the key's number n gets, gv added to."""
    d, k_n, q_n = spread(decay[n * step]), spread(k[n]), spread(q[n])
    g0 = load(g_state, n * _PAIR) + q_n * gy0
    g1 = load(g_state, n * _PAIR + LANES) + q_n * gy1
    store(g_state, n * _PAIR, d * g0)
    store(g_state, n * _PAIR + LANES, d * g1)
    return g0 * v0 + g1 * v1, gv0 + k_n * g0, gv1 + k_n * g1


@njit(**OPTIONS)
def write_backwards(a, g_state, reads, running, head, lane, t):
    """The gradients of value, key and decay at position t."""
    count, step = a[STATES], a[DECAY_STEP]
    q, k, decay, v0, v1 = read_position(a, head, lane, t)
    at = t * a[WIDTH] + head * a[HEAD_WIDTH] + lane
    y0, y1 = load(floats(a[GY]), at), load(floats(a[GY]), at + LANES)
    gv0, gv1 = spread(0.0), spread(0.0)
    row = floats(a[ROW])
    clear(row, count)
    for n in range(0, count, 4):
        r0, gv0, gv1 = write_row(g_state, n, decay, step, k, q, v0, v1, y0, y1, gv0, gv1)
        r1, gv0, gv1 = write_row(g_state, n + 1, decay, step, k, q, v0, v1, y0, y1, gv0, gv1)
        r2, gv0, gv1 = write_row(g_state, n + 2, decay, step, k, q, v0, v1, y0, y1, gv0, gv1)
        r3, gv0, gv1 = write_row(g_state, n + 3, decay, step, k, q, v0, v1, y0, y1, gv0, gv1)
        add_totals(row, n, r0, r1, r2, r3)
    gk = floats(a[G_KEYS] + 4 * t * count)
    for n in range(count):
        gk[n] += row[n]
    store(floats(a[GX]), at, gv0)
    store(floats(a[GX]), at + LANES, gv1)
    size = 1 + step * (count - 1)
    g_decay = floats(a[G_DECAYS] + 4 * (t * a[WIDTH] // a[HEAD_WIDTH] + head) * size)
    if step == 1:
        for n in range(count):
            running[n] += reads[t * count + n] - k[n] * row[n]
            g_decay[n] += running[n]
    else:
        running[0] += reads[t] - total(gv0 * v0 + gv1 * v1)
        g_decay[0] += running[0]


def backward(a):
    """All gradients. G_QUERIES, G_KEYS and G_DECAYS are added to; the others are written.

    STATES is a multiple of 4. ROW is room for one row of so many numbers.
    """
    width, count = a[HEAD_WIDTH], a[STATES]
    size = 1 + a[DECAY_STEP] * (count - 1)
    chunks = (a[LENGTH] + LONG_CHUNK - 1) // LONG_CHUNK
    state = floats(a[SCRATCH])
    ends = floats(a[SCRATCH] + 4 * _PAIR * count)
    after = a[SCRATCH] + 4 * _PAIR * count * (1 + chunks)
    a[ROW] = after
    running = floats(after + 4 * count)
    reads = floats(after + 4 * (count + size))
    for head in range(a[FIRST], a[LAST]):
        for lane in range(0, width, _PAIR):
            copy_rows(get(a[FIRST_STATE], a, head, lane), width, state, _PAIR, count)
            read_forwards(a, state, ends, reads, head, lane)
            copy_rows(get(a[G_STATE], a, head, lane), width, state, _PAIR, count)
            for t in range(a[LENGTH] - 1, -1, -1):
                if (t + 1) % LONG_CHUNK == 0 or t + 1 == a[LENGTH]:
                    sum_anew(a, state, ends, running, t // LONG_CHUNK)
                write_backwards(a, state, reads, running, head, lane, t)
            copy_rows(state, _PAIR, get(a[G_FIRST], a, head, lane), width, count)
    return 0
