"""What kernels are made of: pointers, hashes, characters, tables of pairs, matches.

A table of pairs is an array of uint64 in open addressing: the key of a pair plus 1, then its value;
a key of 0 is a free place.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from lmworks.tokenizers.slots import *

_OPTIONS = {"error_model": "numpy", "boundscheck": False, "nogil": True}


def _pointer(element):
    @intrinsic
    def cast(context, address):
        def generate(cgctx, builder, signature, args):
            return builder.inttoptr(args[0], cgctx.get_value_type(types.CPointer(element)))

        return types.CPointer(element)(types.int64), generate

    return cast


u8p, i32p, u32p, i64p, u64p = map(
    _pointer, (types.uint8, types.int32, types.uint32, types.int64, types.uint64)
)
u16p, f64p = map(_pointer, (types.uint16, types.float64))


@intrinsic
def load64(context, pointer, at):
    """Eight bytes from anywhere."""

    def generate(cgctx, builder, signature, args):
        place = builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(64).as_pointer())
        value = builder.load(place)
        value.align = 1
        return value

    return types.uint64(types.CPointer(types.uint8), types.int64), generate


@njit(**_OPTIONS)
def bytes_at(text, at, size, end):
    """Up to eight bytes as a number, nothing read beyond `end`."""
    if size >= 8:
        return load64(text, at)
    if at + 8 <= end:
        return load64(text, at) & ((np.uint64(1) << np.uint64(8 * size)) - np.uint64(1))
    value = np.uint64(0)
    for i in range(size):
        value |= np.uint64(text[at + i]) << np.uint64(8 * i)
    return value


@njit(**_OPTIONS)
def mix(a, b):
    """A hash of two numbers."""
    h = a * np.uint64(0x9E3779B97F4A7C15) ^ (b + np.uint64(0x7F4A7C15)) * np.uint64(
        0xC2B2AE3D27D4EB4F
    )
    h ^= h >> np.uint64(32)
    return h * np.uint64(0xD6E8FEB86659FD93)


@njit(**_OPTIONS)
def word_hash(low, high):
    """A hash of a word's bytes, in its upper bits."""
    h = low * np.uint64(0x9E3779B97F4A7C15) + high * np.uint64(0xC2B2AE3D27D4EB4F)
    return (h ^ h >> np.uint64(29)) * np.uint64(0xD6E8FEB86659FD93) >> np.uint64(40)


@intrinsic
def trailing_zeros(context, value):
    """How many of the low bits are 0."""

    def generate(cgctx, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@njit(**_OPTIONS)
def letters(eight, fold):
    """How many of eight bytes, from the first, are a-z; with `fold` 0x20 in each byte, A-Z too."""
    low = eight & np.uint64(0x7F7F7F7F7F7F7F7F) | fold
    from_a = low + np.uint64(0x1F1F1F1F1F1F1F1F)
    after_z = low + np.uint64(0x0505050505050505)
    other = ~(from_a & ~after_z & ~eight) & np.uint64(0x8080808080808080)
    return np.int64(8) if other == 0 else np.int64(trailing_zeros(other) >> np.uint64(3))


@njit(**_OPTIONS)
def code_point(text, at):
    """(code point, bytes) of the character at `at`; the text is valid UTF-8."""
    b = np.int64(text[at])
    if b < 0x80:
        return b, 1
    if b < 0xE0:
        return (b & 31) << 6 | np.int64(text[at + 1]) & 63, 2
    if b < 0xF0:
        return (b & 15) << 12 | (np.int64(text[at + 1]) & 63) << 6 | np.int64(text[at + 2]) & 63, 3
    return (
        (b & 7) << 18
        | (np.int64(text[at + 1]) & 63) << 12
        | (np.int64(text[at + 2]) & 63) << 6
        | np.int64(text[at + 3]) & 63
    ), 4


@njit(**_OPTIONS)
def width(byte):
    """Bytes of the character that begins with `byte`."""
    return 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


@njit(**_OPTIONS)
def find_pair(table, mask, left, right):
    """Position of the value of a pair, or -1. An entry is key + 1 and value; key 0 is free."""
    key = (np.uint64(left) << np.uint64(32) | np.uint64(right)) + np.uint64(1)
    at = (mix(key, np.uint64(0)) >> np.uint64(20)) & mask
    while True:
        found = table[2 * at]
        if found == key:
            return np.int64(2 * at + np.uint64(1))
        if found == 0:
            return np.int64(-1)
        at = (at + np.uint64(1)) & mask


@njit(**_OPTIONS)
def insert_pair(table, mask, left, right, value):
    key = (np.uint64(left) << np.uint64(32) | np.uint64(right)) + np.uint64(1)
    at = (mix(key, np.uint64(0)) >> np.uint64(20)) & mask
    while table[2 * at] != 0 and table[2 * at] != key:
        at = (at + np.uint64(1)) & mask
    table[2 * at] = key
    table[2 * at + np.uint64(1)] = value


@njit(**_OPTIONS)
def next_match(a, level, text, at, end):
    """Where the match that begins at `at` ends, or -1."""
    rows, ascii_class, stage1, stage2, start, last_class = (
        u32p(level[CUT_ROWS]), u8p(level[CUT_ASCII]), u16p(level[CUT_STAGE1]),
        u8p(level[CUT_STAGE2]), np.uint32(level[CUT_START]), np.uint32(level[CUT_END_CLASS]),
    )  # fmt: skip
    row, q, last = start, at, np.int64(-1)
    while q < end:
        b = text[q]
        if b < 0x80:
            kind, n = ascii_class[b], 1
        else:
            code, n = code_point(text, q)
            kind = stage2[(np.int64(stage1[code >> 7]) << 7) + (code & 127)]
        step = rows[row + np.uint32(kind)]
        if step & np.uint32(1):
            last = q
        row = step >> np.uint32(3)
        if row == 0:
            if q - last > 64:
                a[LOOKED_AHEAD] += q - max(last, at)
            return last
        q += n
    if rows[row + last_class] & np.uint32(1):
        last = q
    if q - last > 64:
        a[LOOKED_AHEAD] += q - max(last, at)
    return last
