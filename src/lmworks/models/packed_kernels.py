# uses: lmworks.models.kernel_vectors lmworks.models.kernel_slots lmworks.models.packed_vectors
# uses: lmworks.models.packed_slots lmworks.models.product_kernels
# kernels: product records values
"""Products with packed matrices and their weights as float32, compiled; see `packed_vectors`.

Memory is not bounds-checked: `packed` alone calls these, with arrays whose shapes it made itself.
"""

from __future__ import annotations

from lmworks.models.product_kernels import *


def product(a):
    """out[n, r] = W[r] . x[n] + bias[r] for the rows r of some tiles; see `packed_slots`."""
    matrix, out, step_sizes = longs(a[MATRIX]), floats(a[OUT]), floats(a[STEP_SIZES])
    sums = floats(a[SCRATCH])
    # Sums of 8-bit codes are kept in two parts, for which there are registers half as often.
    most = MOST_AT_ONCE // 2 if matrix[KIND] >= BYTES else MOST_AT_ONCE
    for tile in range(a[FIRST], a[LAST]):
        n = 0
        while n < a[COUNT]:
            take = most
            while take > a[COUNT] - n:
                take //= 2
            if matrix[KIND] == FLOAT:
                float_tile(matrix, tile, take, a[X] + n * a[X_ROW], a[X_ROW], a[SCRATCH])
            else:
                packed_tile(matrix, tile, take, a[RECORDS] + n * RECORD_BYTES, a[COUNT], a[SCRATCH])
            for i in range(take):
                found = load(sums, i * TILE)
                if matrix[KIND] != FLOAT:
                    found = found * spread(step_sizes[n + i])
                if matrix[BIAS] != 0:
                    found = found + load(floats(matrix[BIAS]), tile * TILE)
                at = (n + i) * a[OUT_ROW] + tile * TILE
                if a[ADDS] != 0:
                    found = found + load(out, at)
                store(out, at, found)
            n += take
    return 0


def records(a):
    """See `packed_slots`."""
    steps = floats(a[STEP_SIZES])
    for n in range(a[FIRST], a[LAST]):
        x = floats(a[X] + n * a[X_ROW])
        steps[n] = make_records(x, a[WIDTH], a[RECORDS] + n * RECORD_BYTES, a[COUNT])
    return 0


def values(a):
    """See `packed_slots`."""
    matrix, out = longs(a[MATRIX]), floats(a[OUT])
    for tile in range(a[FIRST], a[LAST]):
        rows = min(TILE, a[OUT_ROWS] - tile * TILE)
        unpack(matrix, a[SKIPPED] + tile, rows, floats_from(out, tile * TILE * a[OUT_ROW]))
    return 0
