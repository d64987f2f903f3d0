# uses: lmworks.models.kernel_vectors lmworks.models.kernel_slots
# kernels: forward backward
"""The selective scan of Mamba, compiled: sixteen channels at a time, forward and backward.

A call takes one sequence and the blocks of sixteen channels from FIRST to LAST. The state of a
block lies in scratch memory that stays in the first cache. The forward keeps the state at every
CHUNK-th position only; the backward goes through the chunks from the last to the first and makes
the states of one chunk again, so that no (T, N, C) array ever exists.
"""

from __future__ import annotations

from numba import njit

from lmworks.models.kernel_slots import *
from lmworks.models.kernel_vectors import *


@njit(**OPTIONS)
def copy_state(source, start, step, target, begin, stride, count):
    """`count` vectors, `step` apart, to places `stride` apart."""
    for n in range(count):
        store(target, begin + n * stride, load(source, start + n * step))


def forward(a):
    """y and the last state; the states at the start of each chunk where KEPT is not 0."""
    x, dt, z, y = floats(a[X]), floats(a[DT]), floats(a[Z]), floats(a[Y])
    b, c, d = floats(a[B]), floats(a[C]), floats(a[D])
    kept, width, count = floats(a[KEPT]), a[WIDTH], a[STATES]
    state, decay = floats(a[SCRATCH]), floats(a[SCRATCH] + 4 * LANES * count)
    for block in range(a[FIRST], a[LAST]):
        lane = block * LANES
        copy_state(floats(a[A]), lane, width, decay, 0, LANES, count)
        copy_state(floats(a[FIRST_STATE]), lane, width, state, 0, LANES, count)
        for t in range(a[LENGTH]):
            if a[KEPT] != 0 and t % CHUNK == 0:
                copy_state(state, 0, LANES, kept, t // CHUNK * count * width + lane, width, count)
            x_t = load(x, t * a[X_ROW] + lane)
            dt_t = load(dt, t * a[DT_ROW] + lane)
            u, out = dt_t * x_t, spread(0.0)
            for n in range(count):
                h = exp(dt_t * load(decay, n * LANES)) * load(state, n * LANES)
                h = h + u * spread(b[t * a[B_ROW] + n])
                store(state, n * LANES, h)
                out = out + h * spread(c[t * a[C_ROW] + n])
            if a[D] != 0:
                out = out + load(d, lane) * x_t
            if a[Z] != 0:
                z_t = load(z, t * a[Z_ROW] + lane)
                out = out * z_t * sigmoid(z_t)
            store(y, t * width + lane, out)
        copy_state(state, 0, LANES, floats(a[LAST_STATE]), lane, width, count)
    return 0


@njit(**OPTIONS)
def again(a, lane, start, stop, states, decays, gates, decay):
    """The states of one chunk, and the gradient before the gate; writes that of z."""
    x, dt, z = floats(a[X]), floats(a[DT]), floats(a[Z])
    b, c, d, gy, gz = floats(a[B]), floats(a[C]), floats(a[D]), floats(a[GY]), floats(a[GZ])
    count, width = a[STATES], a[WIDTH]
    for t in range(start, stop):
        x_t = load(x, t * a[X_ROW] + lane)
        dt_t = load(dt, t * a[DT_ROW] + lane)
        gy_t = load(gy, t * width + lane)
        u, out = dt_t * x_t, spread(0.0)
        at = (t - start) * count * LANES
        for n in range(count):
            e = exp(dt_t * load(decay, n * LANES))
            h = e * load(states, at + n * LANES) + u * spread(b[t * a[B_ROW] + n])
            store(decays, at + n * LANES, e)
            store(states, at + (count + n) * LANES, h)
            if a[Z] != 0:
                out = out + h * spread(c[t * a[C_ROW] + n])
        if a[Z] != 0:
            if a[D] != 0:
                out = out + load(d, lane) * x_t
            z_t = load(z, t * a[Z_ROW] + lane)
            s = sigmoid(z_t)
            slope = s * (spread(1.0) + z_t * (spread(1.0) - s))
            store(gz, t * width + lane, gy_t * out * slope)
            gy_t = gy_t * z_t * s
        store(gates, (t - start) * LANES, gy_t)


@njit(**OPTIONS)
def back_one(n, g_state, gy_t, c_t, b_t, gu, e, before, decay, g_rate, ga, dt_t):
    """Number n of the states, one position back: its gradient, and the sums that it adds to."""
    g = load(g_state, n * LANES) + gy_t * spread(c_t[n])
    gu = gu + g * spread(b_t[n])
    past = g * load(e, n * LANES)
    store(g_state, n * LANES, past)
    g_power = past * load(before, n * LANES)
    store(ga, n * LANES, load(ga, n * LANES) + g_power * dt_t)
    return g, gu, g_rate + g_power * load(decay, n * LANES)


@njit(**OPTIONS)
def back(a, lane, start, stop, states, decays, gates, decay, g_state, ga):
    """From the end of one chunk to its start; g_state is the gradient of the state."""
    x, dt, b, c, d = floats(a[X]), floats(a[DT]), floats(a[B]), floats(a[C]), floats(a[D])
    gx, gdt, gb, gc, gd = floats(a[GX]), floats(a[GDT]), floats(a[GB]), floats(a[GC]), floats(a[GD])
    count, width = a[STATES], a[WIDTH]
    for t in range(stop - 1, start - 1, -1):
        x_t = load(x, t * a[X_ROW] + lane)
        dt_t = load(dt, t * a[DT_ROW] + lane)
        gy_t = load(gates, (t - start) * LANES)
        u, gu, g_rate = dt_t * x_t, spread(0.0), spread(0.0)
        before = floats_from(states, (t - start) * count * LANES)
        after = floats_from(before, count * LANES)
        e = floats_from(decays, (t - start) * count * LANES)
        b_t, c_t = floats_from(b, t * a[B_ROW]), floats_from(c, t * a[C_ROW])
        for n in range(0, count, 4):
            g0, gu, g_rate = back_one(
                n, g_state, gy_t, c_t, b_t, gu, e, before, decay, g_rate, ga, dt_t
            )
            g1, gu, g_rate = back_one(
                n + 1, g_state, gy_t, c_t, b_t, gu, e, before, decay, g_rate, ga, dt_t
            )
            g2, gu, g_rate = back_one(
                n + 2, g_state, gy_t, c_t, b_t, gu, e, before, decay, g_rate, ga, dt_t
            )
            g3, gu, g_rate = back_one(
                n + 3, g_state, gy_t, c_t, b_t, gu, e, before, decay, g_rate, ga, dt_t
            )
            add_totals(gb, t * count + n, g0 * u, g1 * u, g2 * u, g3 * u)
            add_totals(
                gc,
                t * count + n,
                gy_t * load(after, n * LANES),
                gy_t * load(after, (n + 1) * LANES),
                gy_t * load(after, (n + 2) * LANES),
                gy_t * load(after, (n + 3) * LANES),
            )
        store(gdt, t * width + lane, g_rate + gu * x_t)
        gx_t = gu * dt_t
        if a[D] != 0:
            gx_t = gx_t + gy_t * load(d, lane)
            store(gd, lane, load(gd, lane) + gy_t * x_t)
        store(gx, t * width + lane, gx_t)


def backward(a):
    """All gradients. GB, GC and GD are added to; the others are written. STATES: in fours."""
    count, width = a[STATES], a[WIDTH]
    size = LANES * count
    states = floats(a[SCRATCH])
    decays = floats(a[SCRATCH] + 4 * size * (CHUNK + 1))
    decay = floats(a[SCRATCH] + 4 * size * (2 * CHUNK + 1))
    g_state = floats(a[SCRATCH] + 4 * size * (2 * CHUNK + 2))
    ga = floats(a[SCRATCH] + 4 * size * (2 * CHUNK + 3))
    gates = floats(a[SCRATCH] + 4 * size * (2 * CHUNK + 4))
    kept = floats(a[KEPT])
    for block in range(a[FIRST], a[LAST]):
        lane = block * LANES
        copy_state(floats(a[A]), lane, width, decay, 0, LANES, count)
        copy_state(floats(a[G_STATE]), lane, width, g_state, 0, LANES, count)
        for n in range(count):
            store(ga, n * LANES, spread(0.0))
        for chunk in range((a[LENGTH] - 1) // CHUNK, -1, -1):
            start = chunk * CHUNK
            stop = min(a[LENGTH], start + CHUNK)
            copy_state(kept, chunk * count * width + lane, width, states, 0, LANES, count)
            again(a, lane, start, stop, states, decays, gates, decay)
            back(a, lane, start, stop, states, decays, gates, decay, g_state, ga)
        copy_state(ga, 0, LANES, floats(a[GA]), lane, width, count)
        copy_state(g_state, 0, LANES, floats(a[G_FIRST]), lane, width, count)
    return 0
