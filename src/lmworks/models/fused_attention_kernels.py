"""Attention of a fused step: keys and values into the cache, and what a query gathers of them."""

from __future__ import annotations

import numpy as np
from numba import njit

from lmworks.models import fused_slots as f
from lmworks.models.attention_vectors import (
    add_weighted,
    as_float,
    seen,
    sixteen_scores,
    table_entry,
)
from lmworks.models.kernel_vectors import *
from lmworks.models.packed_slots import MOST_AT_ONCE, TILE
from lmworks.models.packed_vectors import highest, longs, longs_from
from lmworks.models.row_kernels import norm_row, tanh


@njit(**OPTIONS)
def held_at(a, layer, places, row, head, position):
    """Where a head's numbers of a position begin, in float32 from the start of a layer's keys."""
    size, heads, ring = layer[f.HEAD_DIM], layer[f.KV_HEADS], places[f.RING]
    if ring != 0:
        slot = longs(a[f.CACHE_SLOTS])[row]
        return ((slot * heads + head) * ring + position % ring) * size
    page = table_entry(a[f.TABLE], row * a[f.TABLE_ROW] + position // f.PAGE)
    return ((page * heads + head) * f.PAGE + position % f.PAGE) * size


@njit(**OPTIONS)
def turn(x, layer, places, position):
    """A head (head_dim,) turned by the angles of its position, in place."""
    width = layer[f.ROTARY_DIM]
    half = width // 2
    cosines = floats(places[f.COSINES_AT] + position * width * 4)
    sines = floats(places[f.SINES_AT] + position * width * 4)
    for i in range(half):
        low, high = x[i], x[half + i]
        x[i] = low * cosines[i] + high * sines[i]
        x[half + i] = high * cosines[half + i] + low * sines[half + i]


@njit(**OPTIONS)
def place_keys(a, layer, places, n, head):
    """Norm and turn one key head and its queries, and write key and value into the cache."""
    size, heads = layer[f.HEAD_DIM], layer[f.KV_HEADS]
    row, group = n // a[f.NEW], layer[f.HEADS] // heads
    position = longs(a[f.STARTS])[row] + n % a[f.NEW]
    for g in range(group + 1):
        if g < group:
            x = floats(a[f.QUERIES] + ((n * heads + head) * group + g) * size * 4)
            norm = longs_from(layer, f.QUERY_NORM)
        else:
            x = floats(a[f.KEYS] + (n * heads + head) * size * 4)
            norm = longs_from(layer, f.KEY_NORM)
        if norm[f.NORM_KIND] != f.NO_NORM:
            norm_row(norm, x, size, x)
        if layer[f.ROTARY_DIM] != 0:
            turn(x, layer, places, position)
    start = held_at(a, layer, places, row, head, position)
    key, value = floats(places[f.KEYS_AT]), floats(places[f.VALUES_AT])
    new_key = floats(a[f.KEYS] + (n * heads + head) * size * 4)
    new_value = floats(a[f.VALUES] + (n * heads + head) * size * 4)
    for at in range(0, size, LANES):
        store(key, start + at, load(new_key, at))
        store(value, start + at, load(new_value, at))


@njit(**OPTIONS)
def attend(a, layer, places, n, first_head, heads):
    """GATHERED of `heads` query heads of one row that share a key-value head."""
    size = layer[f.HEAD_DIM]
    kv_head = first_head // (layer[f.HEADS] // layer[f.KV_HEADS])
    row = n // a[f.NEW]
    position = longs(a[f.STARTS])[row] + n % a[f.NEW]
    low = 0
    if layer[f.WINDOW] != 0 and position >= layer[f.WINDOW]:
        low = position - layer[f.WINDOW] + 1
    first, last = low // f.PAGE, position // f.PAGE + 1
    width = (last - first) * f.PAGE
    scale, softcap = as_float(layer[f.SCALE]), as_float(layer[f.SOFTCAP])
    queries = floats(a[f.QUERIES] + (n * layer[f.HEADS] + first_head) * size * 4)
    gathered = floats(a[f.GATHERED] + (n * layer[f.HEADS] + first_head) * size * 4)
    keys, values = floats(places[f.KEYS_AT]), floats(places[f.VALUES_AT])
    tops = floats(a[f.SCRATCH] + MOST_AT_ONCE * TILE * 4)
    scores = floats_from(tops, heads * LANES)
    for g in range(heads):
        store(tops, g * LANES, spread(np.float32(-3e38)))
    for page in range(first, last):
        key = floats_from(keys, held_at(a, layer, places, row, kv_head, page * f.PAGE))
        for g in range(heads):
            found = sixteen_scores(size, floats_from(queries, g * size), key) * spread(scale)
            if softcap != np.float32(0.0):
                found = spread(softcap) * tanh(found / spread(softcap))
            if page == first or page == last - 1:
                found = seen(found, page * f.PAGE, low, position)
            store(scores, g * width + (page - first) * f.PAGE, found)
            store(tops, g * LANES, larger(load(tops, g * LANES), found))
    for g in range(heads):
        top = spread(highest(load(tops, g * LANES)))
        sums = spread(np.float32(0.0))
        for at in range(g * width, (g + 1) * width, LANES):
            weight = exp(load(scores, at) - top)
            sums = sums + weight
            store(scores, at, weight)
        store(tops, g * LANES, spread(np.float32(1.0) / total(sums)))
        for at in range(0, size, LANES):
            store(gathered, g * size + at, spread(np.float32(0.0)))
    for page in range(first, last):
        value = floats_from(values, held_at(a, layer, places, row, kv_head, page * f.PAGE))
        # What was never written may be anything: it is not read, whatever its weight.
        begin, end = max(low - page * f.PAGE, 0), min(position + 1 - page * f.PAGE, f.PAGE)
        for g in range(heads):
            weights = floats_from(scores, g * width + (page - first) * f.PAGE)
            add_weighted(size, weights, value, begin, end, floats_from(gathered, g * size))
    for g in range(heads):
        inverse = load(tops, g * LANES)
        for at in range(g * size, (g + 1) * size, LANES):
            store(gathered, at, load(gathered, at) * inverse)
