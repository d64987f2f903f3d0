# uses: lmworks.models.kernel_vectors lmworks.models.kernel_slots lmworks.models.packed_vectors
# uses: lmworks.models.packed_slots lmworks.models.product_kernels lmworks.models.fused_slots
# uses: lmworks.models.kernel_threads lmworks.models.attention_vectors
# uses: lmworks.models.fused_attention_kernels lmworks.models.row_kernels
# kernels: step
"""All layers of a decoder for a few new positions in one call, compiled; see `fused_step`.

Every thread of a team runs the same program and takes pieces of each stage (`kernel_threads`): rows
of activations where a stage works on rows, tiles of rows of a matrix where it multiplies. A result
depends neither on who made it nor on other rows.
"""

from __future__ import annotations

from numba import njit

from lmworks.models import fused_slots as f
from lmworks.models.fused_attention_kernels import attend, place_keys
from lmworks.models.kernel_threads import cut, finish, take
from lmworks.models.kernel_vectors import *
from lmworks.models.packed_slots import *
from lmworks.models.product_kernels import *
from lmworks.models.row_kernels import activated, add_rows, norm_row


@njit(**OPTIONS)
def layer_of(a, index, slot):
    """The address of a part of a layer."""
    return a[f.LAYERS] + (index * f.LAYER_SLOTS + slot) * 8


@njit(**OPTIONS)
def part(a, matrix, x, x_row, count, first, last, out, out_row, adds):
    """Some tiles of a product with `count` rows of x, x_row bytes apart."""
    told = longs(a[f.CALL])
    told[MATRIX], told[X], told[X_ROW], told[COUNT] = matrix, x, x_row, count
    told[FIRST], told[LAST], told[OUT], told[OUT_ROW], told[ADDS] = first, last, out, out_row, adds
    call(a[f.PRODUCT], a[f.CALL])


@njit(**OPTIONS)
def tiles_of(matrix):
    """Its tiles of rows."""
    return (longs(matrix)[ROWS] + TILE - 1) // TILE


@njit(**OPTIONS)
def is_packed(matrix):
    """Whether a matrix meets records and not the numbers themselves."""
    return longs(matrix)[KIND] > FLOAT


@njit(**OPTIONS)
def record(a, x, width, n):
    """The records of row n of x."""
    row = floats(x + n * width * 4)
    step = make_records(row, width, a[f.RECORDS] + n * RECORD_BYTES, a[f.COUNT])
    floats(a[f.STEP_SIZES])[n] = step


@njit(**OPTIONS)
def norm_rows(a, norm, wants_records):
    """X -> NORMED, and its records."""
    size, pieces, done = a[f.HIDDEN], cut(a, a[f.COUNT], 1), 0
    piece = take(a)
    while piece < pieces:
        for n in range(a[f.COUNT] * piece // pieces, a[f.COUNT] * (piece + 1) // pieces):
            at = n * size * 4
            norm_row(longs(norm), floats(a[f.X] + at), size, floats(a[f.NORMED] + at))
            if wants_records:
                record(a, a[f.NORMED], size, n)
        done += 1
        piece = take(a)
    finish(a, pieces, done)


@njit(**OPTIONS)
def update(a, matrix, norm, x, width):
    """X += what a matrix makes of x, normed if there is a norm."""
    count, size = a[f.COUNT], a[f.HIDDEN]
    if is_packed(matrix):
        pieces, done = cut(a, count, 1), 0
        piece = take(a)
        while piece < pieces:
            for n in range(count * piece // pieces, count * (piece + 1) // pieces):
                record(a, x, width, n)
            done += 1
            piece = take(a)
        finish(a, pieces, done)
    adds = longs(norm)[f.NORM_KIND] == f.NO_NORM
    out = a[f.X] if adds else a[f.UPDATE]
    tiles = tiles_of(matrix)
    pieces, done = cut(a, tiles, 2), 0
    piece = take(a)
    while piece < pieces:
        first, last = tiles * piece // pieces, tiles * (piece + 1) // pieces
        part(a, matrix, x, 4 * width, count, first, last, out, size, adds)
        done += 1
        piece = take(a)
    finish(a, pieces, done)
    if adds:
        return
    pieces, done = cut(a, count, 1), 0
    piece = take(a)
    while piece < pieces:
        for n in range(count * piece // pieces, count * (piece + 1) // pieces):
            row = floats(a[f.UPDATE] + n * size * 4)
            norm_row(longs(norm), row, size, row)
            add_rows(floats(a[f.X] + n * size * 4), row, size)
        done += 1
        piece = take(a)
    finish(a, pieces, done)


@njit(**OPTIONS)
def project(a, index):
    """Queries, keys and values: the tiles of three matrices one behind the other."""
    layer = longs(layer_of(a, index, 0))
    narrow = layer[f.KV_HEADS] * layer[f.HEAD_DIM]
    tiles = 0
    for slot in range(f.QUERY, f.OUTPUT, MATRIX_SLOTS):
        tiles += tiles_of(layer_of(a, index, slot))
    x_row = 4 * a[f.HIDDEN]
    pieces, done = cut(a, tiles, 2), 0
    piece = take(a)
    while piece < pieces:
        begin, end = tiles * piece // pieces, tiles * (piece + 1) // pieces
        for slot in range(f.QUERY, f.OUTPUT, MATRIX_SLOTS):
            own = tiles_of(layer_of(a, index, slot))
            out, out_row = a[f.QUERIES], layer[f.HEADS] * layer[f.HEAD_DIM]
            if slot != f.QUERY:
                out, out_row = a[f.KEYS] if slot == f.KEY else a[f.VALUES], narrow
            first, last = max(begin, 0), min(end, own)
            if first < last:
                matrix = layer_of(a, index, slot)
                part(a, matrix, a[f.NORMED], x_row, a[f.COUNT], first, last, out, out_row, False)
            begin, end = begin - own, end - own
        done += 1
        piece = take(a)
    finish(a, pieces, done)


@njit(**OPTIONS)
def mix(a, index, places):
    """The attention of one layer."""
    layer = longs(layer_of(a, index, 0))
    query, key = layer_of(a, index, f.QUERY), layer_of(a, index, f.KEY)
    packed = is_packed(query) or is_packed(key) or is_packed(layer_of(a, index, f.VALUE))
    norm_rows(a, layer_of(a, index, f.MIXER_NORM), packed)
    project(a, index)
    heads = layer[f.KV_HEADS]
    work = a[f.COUNT] * heads
    pieces, done = cut(a, work, 1), 0
    piece = take(a)
    while piece < pieces:
        for item in range(work * piece // pieces, work * (piece + 1) // pieces):
            place_keys(a, layer, places, item // heads, item % heads)
        done += 1
        piece = take(a)
    finish(a, pieces, done)
    # A key is read once for all query heads that share it, where there are parts enough.
    together = layer[f.HEADS] // heads if work >= 4 * a[f.THREADS] else 1
    parts = layer[f.HEADS] // together
    work = a[f.COUNT] * parts
    pieces, done = cut(a, work, 1), 0
    piece = take(a)
    while piece < pieces:
        for item in range(work * piece // pieces, work * (piece + 1) // pieces):
            attend(a, layer, places, item // parts, item % parts * together, together)
        done += 1
        piece = take(a)
    finish(a, pieces, done)
    norm = layer_of(a, index, f.MIXER_OUTPUT_NORM)
    wide = layer[f.HEADS] * layer[f.HEAD_DIM]
    update(a, layer_of(a, index, f.OUTPUT), norm, a[f.GATHERED], wide)


@njit(**OPTIONS)
def feed_forward(a, index):
    """The MLP of one layer."""
    layer = longs(layer_of(a, index, 0))
    gate, up = layer_of(a, index, f.GATE), layer_of(a, index, f.UP)
    norm_rows(a, layer_of(a, index, f.MLP_NORM), is_packed(gate) or is_packed(up))
    width, gated = layer[f.INTERMEDIATE], longs(gate)[KIND] != NONE
    tiles, x, x_row = width // TILE, a[f.NORMED], 4 * a[f.HIDDEN]
    pieces, done = cut(a, tiles, 2), 0
    piece = take(a)
    while piece < pieces:
        first, last = tiles * piece // pieces, tiles * (piece + 1) // pieces
        if gated:
            part(a, gate, x, x_row, a[f.COUNT], first, last, a[f.GATES], width, False)
        part(a, up, x, x_row, a[f.COUNT], first, last, a[f.INNER], width, False)
        for n in range(a[f.COUNT]):
            inner, gates = floats(a[f.INNER] + n * width * 4), floats(a[f.GATES] + n * width * 4)
            for at in range(first * TILE, last * TILE, LANES):
                found = load(inner, at)
                if gated:
                    found = activated(layer[f.ACTIVATION], load(gates, at)) * found
                else:
                    found = activated(layer[f.ACTIVATION], found)
                store(inner, at, found)
        done += 1
        piece = take(a)
    finish(a, pieces, done)
    norm = layer_of(a, index, f.MLP_OUTPUT_NORM)
    update(a, layer_of(a, index, f.DOWN), norm, a[f.INNER], width)


@njit(**OPTIONS)
def end(a):
    """STATES = X after the last norm; LOGITS of all of them or of each row's last, if wanted."""
    size, every = a[f.HIDDEN], a[f.NEW] if a[f.LAST_ONLY] else 1
    rows, wanted = a[f.COUNT] // every, a[f.LOGITS] != 0
    head = longs(a[f.HEAD]) if wanted else longs(a[f.END_NORM])
    packed = wanted and head[KIND] > FLOAT
    steps = floats(a[f.STEP_SIZES])
    pieces, done = cut(a, a[f.COUNT], 1), 0
    piece = take(a)
    while piece < pieces:
        for n in range(a[f.COUNT] * piece // pieces, a[f.COUNT] * (piece + 1) // pieces):
            state = floats(a[f.STATES] + n * size * 4)
            norm_row(longs(a[f.END_NORM]), floats(a[f.X] + n * size * 4), size, state)
            if packed and (n + 1) % every == 0:
                row = n // every
                steps[row] = make_records(state, size, a[f.RECORDS] + row * RECORD_BYTES, rows)
        done += 1
        piece = take(a)
    finish(a, pieces, done)
    if not wanted:
        return
    tiles, x = (head[ROWS] + TILE - 1) // TILE, a[f.STATES] + (every - 1) * size * 4
    pieces, done = cut(a, tiles, 2), 0
    piece = take(a)
    while piece < pieces:
        first, last = tiles * piece // pieces, tiles * (piece + 1) // pieces
        part(
            a, a[f.HEAD], x, 4 * size * every, rows, first, last, a[f.LOGITS], a[f.LOGITS_ROW],
            False,
        )  # fmt: skip
        done += 1
        piece = take(a)
    finish(a, pieces, done)


def step(a):
    """See `fused_slots`."""
    for index in range(a[f.NUM_LAYERS]):
        mix(a, index, longs(a[f.PLACES] + index * f.PLACES_SLOTS * 8))
        feed_forward(a, index)
    end(a)
    return 0
