"""Products that kernels share: tiles of a matrix, packed or float32, times rows of activations."""

from __future__ import annotations

import numpy as np
from numba import njit

from lmworks.models.kernel_vectors import *
from lmworks.models.packed_slots import *
from lmworks.models.packed_vectors import *


@njit(**OPTIONS)
def make_records(x, columns, records, count):
    """One row of x as records, `count` to a block; the size of its step, NaN for no numbers."""
    top, none = spread(np.float32(0.0)), spread(np.float32(0.0))
    for at in range(0, columns, LANES):
        numbers = load(x, at)
        top = larger(top, absolute(numbers))
        none = none + numbers * spread(np.float32(0.0))
    largest = highest(top)
    inverse = np.float32(0.0)
    if largest > np.float32(1e-25):
        inverse = np.float32(STEPS) / largest
    for block in range(columns // BLOCK):
        make_record(x, block * BLOCK, inverse, records + block * count * RECORD_BYTES)
    step = largest / np.float32(STEPS) if FIXED_POINT else np.float32(1.0)
    return step + total(none)


@njit(**OPTIONS)
def packed_tile(matrix, tile, take, records, count, sums):
    """One tile times the first `take` records, in steps of each."""
    kind, blocks = matrix[KIND], matrix[COLUMNS] // BLOCK
    bits = 8 if kind >= BYTES else 4
    halves = 2 if kind in (NIBBLES_HALVES, CENTRED_HALVES, BYTES_HALVES) else 1
    each = tile * blocks * TILE
    tile_sums(
        kind, take, matrix[CODES] + each * BLOCK * bits // 8, matrix[SCALES] + each * halves * 4,
        matrix[OFFSETS] + each * halves * 4, records, blocks, count, sums,
    )  # fmt: skip


@njit(**OPTIONS)
def float_tile(matrix, tile, take, x, x_row, sums):
    """The same of float32 weights; what lies beyond the last row is the last four rows again."""
    row = matrix[COLUMNS] * 4
    together = 4 if take >= 4 else 1  # so that 2 are two times 1
    for four in range(0, TILE, 4):
        first = min(tile * TILE + four, max(matrix[ROWS] - 4, 0))
        behind = tile * TILE + four - first
        if behind >= 4:
            break
        for n in range(0, take, together):
            start, to = x + n * x_row, sums + (n * TILE + four) * 4
            float_sums(
                together, matrix[CODES] + first * row, row, matrix[COLUMNS], start, x_row, to
            )
            if behind > 0:
                moved = floats(to)
                for i in range(together):
                    for r in range(4 - behind):
                        moved[i * TILE + r] = moved[i * TILE + r + behind]


@njit(**OPTIONS)
def unpack(matrix, tile, rows, out):
    """The weights of the first `rows` rows of a tile, (rows, columns) float32."""
    kind, blocks = matrix[KIND], matrix[COLUMNS] // BLOCK
    bits = 8 if kind >= BYTES else 4
    halves = 2 if kind in (NIBBLES_HALVES, CENTRED_HALVES, BYTES_HALVES) else 1
    for block in range(blocks):
        at = (tile * blocks + block) * TILE
        codes = matrix[CODES] + at * BLOCK * bits // 8
        scales, offsets = matrix[SCALES] + at * halves * 4, matrix[OFFSETS] + at * halves * 4
        for row in range(rows):
            to = row * matrix[COLUMNS] + block * BLOCK
            row_values(kind, codes, scales, offsets, row, out, to)
