# uses: lmworks.models.kernel_vectors lmworks.models.kernel_slots
# uses: lmworks.models.paged_attention_slots
# kernels: extend attend
"""Attention over pages, compiled: a part is a row of the batch and one key-value head of it.

A query meets its keys page by page, in the order of positions, and nothing of what it computes
depends on the queries beside it: neither on other rows nor on how many positions the step has. What
lies behind a query's own position is never added, whatever the page holds there.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from lmworks.models.kernel_vectors import *
from lmworks.models.paged_attention_slots import *

_PAGE = 16
_LANES = 16
_WIDE = 4 * _LANES
_F16, _BLOCK, _BLOCK_BYTES = 1, 32, 34  # as in `cache_types`
_HALF_SCALE = np.float32(2.0**112)  # of exponents: 127 - 15


def _pointer(element):
    """A cast of addresses to pointers to numbers of this type."""

    @intrinsic
    def cast(context, address):
        def generate(cgctx, builder, signature, args):
            return builder.inttoptr(args[0], cgctx.get_value_type(types.CPointer(element)))

        return types.CPointer(element)(types.int64), generate

    return cast


ints, longs, shorts, octets = map(_pointer, (types.int32, types.int64, types.uint16, types.int8))


@intrinsic
def as_float(context, bits):
    """The float32 whose 32 bits these are."""

    def generate(cgctx, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(**OPTIONS)
def half_value(bits):
    """A float16's 16 bits as float32. In whole numbers and one product, so that no processor needs
    to know the type; infinity and NaN, which a cache does not hold, become large numbers."""
    number = np.int32(bits)
    return as_float((number & 0x7FFF) << 13 | (number & 0x8000) << 16) * _HALF_SCALE


@njit(**OPTIONS)
def decode_page(a, pool, b, h, page, out):
    """The sixteen rows of a page of a coded pool as float32."""
    size, row = a[SIZE], a[ROW_BYTES]
    number = ints(a[TABLE])[b * a[TABLE_ROW] + page]
    base = pool + (number * a[HEADS] + h) * _PAGE * row
    if a[CODING] == _F16:
        halves = shorts(base)
        for i in range(_PAGE * size):
            out[i] = half_value(halves[i])
        return
    for i in range(_PAGE):
        for block in range(size // _BLOCK):
            at = base + i * row + block * _BLOCK_BYTES
            d, codes = half_value(shorts(at)[0]), octets(at + 2)
            for j in range(_BLOCK):
                out[i * size + block * _BLOCK + j] = d * np.float32(codes[j])


@njit(**OPTIONS)
def page_at(a, b, h, page):
    """Where the numbers of head h in a row's page begin."""
    number = ints(a[TABLE])[b * a[TABLE_ROW] + page]
    return (number * a[HEADS] + h) * _PAGE * a[SIZE]


@njit(**OPTIONS)
def write(a, b, h, start, pool, new, step):
    """The new positions of a part into its pages."""
    size = a[SIZE]
    for t in range(a[NUM_NEW]):
        position = start + t
        target = page_at(a, b, h, position // _PAGE) + position % _PAGE * size
        for i in range(size):
            pool[target + i] = new[t * step + i]


def extend(a):
    """Write NEW; OUT gets all that a row then holds, and zeros behind it."""
    heads, size, seen = a[HEADS], a[SIZE], a[SEEN]
    pool = floats(a[POOL])
    for part in range(a[FIRST], a[LAST]):
        b, h = part // heads, part % heads
        start = longs(a[STARTS])[b]
        new = floats(a[NEW] + 4 * (b * a[NEW_ROW] + h * a[NEW_HEAD]))
        write(a, b, h, start, pool, new, a[NEW_STEP])
        if a[OUT] == 0:
            continue
        held = start + a[NUM_NEW]
        out = floats(a[OUT] + 4 * part * seen * size)
        for page in range((held + _PAGE - 1) // _PAGE):
            source, target = page_at(a, b, h, page), page * _PAGE * size
            for i in range(min(_PAGE, held - page * _PAGE) * size):
                out[target + i] = pool[source + i]
        for i in range(held * size, seen * size):
            out[i] = 0.0
    return 0


@njit(**OPTIONS)
def score_page(keys, at, query, size, scores):
    """query . key for the sixteen keys of a page."""
    for i in range(0, _PAGE, 4):
        s0, s1, s2, s3 = spread(0.0), spread(0.0), spread(0.0), spread(0.0)
        row = at + i * size
        for d in range(0, size, _LANES):
            q = load(query, d)
            s0 = s0 + q * load(keys, row + d)
            s1 = s1 + q * load(keys, row + size + d)
            s2 = s2 + q * load(keys, row + 2 * size + d)
            s3 = s3 + q * load(keys, row + 3 * size + d)
        for j in range(4):
            scores[i + j] = 0.0
        add_totals(scores, i, s0, s1, s2, s3)


@njit(**OPTIONS)
def weigh(scores, count):
    """exp of the first `count` scores less their largest, zeros up to a page; the sum."""
    padded = (count + _PAGE - 1) // _PAGE * _PAGE
    for i in range(count, padded):
        scores[i] = -np.inf
    largest = load(scores, 0)
    for i in range(_LANES, padded, _LANES):
        largest = larger(largest, load(scores, i))
    kept = load(scores, 0)
    store(scores, 0, largest)
    most = scores[0]
    for i in range(1, _LANES):
        most = max(most, scores[i])
    store(scores, 0, kept)
    sum_ = spread(0.0)
    for i in range(0, padded, _LANES):
        store(scores, i, exp(load(scores, i) - spread(most)))
        for j in range(max(i, count), i + _LANES):
            scores[j] = 0.0
        sum_ = sum_ + load(scores, i)
    return total(sum_)


@njit(**OPTIONS)
def add_page(values, at, weights, count, size, out):
    """The first `count` values of a page, each times its weight."""
    d = 0
    while d + _WIDE <= size:
        y0, y1 = load(out, d), load(out, d + _LANES)
        y2, y3 = load(out, d + 2 * _LANES), load(out, d + 3 * _LANES)
        for i in range(count):
            w, row = spread(weights[i]), at + i * size + d
            y0 = y0 + w * load(values, row)
            y1 = y1 + w * load(values, row + _LANES)
            y2 = y2 + w * load(values, row + 2 * _LANES)
            y3 = y3 + w * load(values, row + 3 * _LANES)
        store(out, d, y0)
        store(out, d + _LANES, y1)
        store(out, d + 2 * _LANES, y2)
        store(out, d + 3 * _LANES, y3)
        d += _WIDE
    while d < size:
        y0 = load(out, d)
        for i in range(count):
            y0 = y0 + spread(weights[i]) * load(values, at + i * size + d)
        store(out, d, y0)
        d += _LANES


@njit(**OPTIONS)
def attend_part(a, b, h, start):
    """All queries of a part."""
    size, group, num_new = a[SIZE], a[GROUP], a[NUM_NEW]
    keys, values = floats(a[POOL]), floats(a[VALUES_POOL])
    queries = num_new * group
    query = floats(a[SCRATCH])
    first_scores = a[SCRATCH] + 4 * queries * size
    scale = floats(a[SCALE])[0]
    for n in range(queries):
        t, g = n // group, n % group
        source = floats(
            a[QUERIES]
            + 4 * (b * a[QUERIES_ROW] + (h * group + g) * a[QUERIES_HEAD] + t * a[QUERIES_STEP])
        )
        for d in range(size):
            query[n * size + d] = source[d] * scale
    for page in range((start + num_new + _PAGE - 1) // _PAGE):
        at = page_at(a, b, h, page)
        if a[CODING] != 0:
            keys, at = floats(a[DECODED]), 0
            decode_page(a, a[POOL], b, h, page, keys)
        for n in range(queries):
            row = first_scores + 4 * (n * a[SCORES_ROW] + page * _PAGE)
            score_page(keys, at, floats_from(query, n * size), size, floats(row))
    # Queries are not needed any more: their place takes what each gathers.
    for n in range(queries):
        seen = start + n // group + 1
        sum_ = weigh(floats(first_scores + 4 * n * a[SCORES_ROW]), seen)
        floats(first_scores + 4 * n * a[SCORES_ROW])[a[SCORES_ROW] - 1] = 1.0 / sum_
        for d in range(0, size, _LANES):
            store(query, n * size + d, spread(0.0))
    for page in range((start + num_new + _PAGE - 1) // _PAGE):
        at = page_at(a, b, h, page)
        if a[CODING] != 0:
            values, at = floats(a[DECODED]), 0
            decode_page(a, a[VALUES_POOL], b, h, page, values)
        for n in range(queries):
            count = min(_PAGE, start + n // group + 1 - page * _PAGE)
            if count > 0:
                row = floats(first_scores + 4 * (n * a[SCORES_ROW] + page * _PAGE))
                add_page(values, at, row, count, size, floats_from(query, n * size))
    heads = a[HEADS] * group
    for n in range(queries):
        t, g = n // group, n % group
        out = floats(a[OUT] + 4 * (((b * num_new + t) * heads + h * group + g) * size))
        share = spread(floats(first_scores + 4 * n * a[SCORES_ROW])[a[SCORES_ROW] - 1])
        for d in range(0, size, _LANES):
            store(out, d, load(query, n * size + d) * share)


def attend(a):
    """Write the new keys and values; OUT gets what each query gathers."""
    heads = a[HEADS]
    for part in range(a[FIRST], a[LAST]):
        b, h = part // heads, part % heads
        start = longs(a[STARTS])[b]
        if a[CODING] == 0:
            new = floats(a[NEW] + 4 * (b * a[NEW_ROW] + h * a[NEW_HEAD]))
            write(a, b, h, start, floats(a[POOL]), new, a[NEW_STEP])
            new = floats(a[VALUES_NEW] + 4 * (b * a[VALUES_ROW] + h * a[VALUES_HEAD]))
            write(a, b, h, start, floats(a[VALUES_POOL]), new, a[VALUES_STEP])
        attend_part(a, b, h, start)
    return 0
