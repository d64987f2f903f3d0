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


@intrinsic
def prefetch(context, pointer, at):
    """Ask for the memory of a table's entry before it is needed."""

    def generate(cgctx, builder, signature, args):
        place = builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(function, [place, *(ir.Constant(number, n) for n in (0, 3, 1))])
        return cgctx.get_dummy_value()

    return types.void(types.CPointer(types.uint64), types.int64), generate


@intrinsic
def store32(context, pointer, at, value):
    """Four bytes to anywhere."""

    def generate(cgctx, builder, signature, args):
        place = builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(32).as_pointer())
        builder.store(args[2], place).align = 1
        return cgctx.get_dummy_value()

    return types.void(types.CPointer(types.uint8), types.int64, types.uint32), generate


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
def text_hash(text, start, end, limit):
    """A hash of bytes of any length, never 0, random in its upper bits.

    Nothing is read beyond `limit`.
    """
    h = np.uint64(end - start) * np.uint64(0x9E3779B97F4A7C15)
    at = start
    while at < end:
        eight = load64(text, at) if at + 8 <= end else bytes_at(text, at, end - at, limit)
        h = (h ^ eight) * np.uint64(0xD6E8FEB86659FD93)
        h ^= h >> np.uint64(32)
        at += 8
    return h | np.uint64(1)


@njit(**_OPTIONS)
def same_bytes(text, start, other, begin, size):
    """Whether `size` bytes are equal."""
    i = np.int64(0)
    while i + 8 <= size:
        if load64(text, start + i) != load64(other, begin + i):
            return False
        i += 8
    while i < size:
        if text[start + i] != other[begin + i]:
            return False
        i += 1
    return True


@njit(**_OPTIONS)
def word_key(text, start, size, limit):
    """The key of a word of at most 15 bytes: its bytes, and its size in the upper byte."""
    low = bytes_at(text, start, min(size, 8), limit)
    high = bytes_at(text, start + 8, size - 8, limit) if size > 8 else np.uint64(0)
    return low, high | np.uint64(size) << np.uint64(56)


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


@intrinsic
def others16(context, text, at, fold, first, number):
    """A bit for each of 16 bytes that is no member: (byte | fold) - first below number.

    The bits above are set, so that there is always one.
    """

    def generate(cgctx, builder, signature, args):
        byte, vector = ir.IntType(8), ir.VectorType(ir.IntType(8), 16)

        def all_lanes(value):
            one = builder.insert_element(
                ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
            )
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), 16), [0] * 16)
            return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

        fold, first, number = (all_lanes(builder.trunc(value, byte)) for value in args[2:])
        place = builder.bitcast(builder.gep(args[0], [args[1]]), vector.as_pointer())
        loaded = builder.load(place)
        loaded.align = 1
        other = builder.icmp_unsigned(">=", builder.sub(builder.or_(loaded, fold), first), number)
        bits = builder.zext(builder.bitcast(other, ir.IntType(16)), ir.IntType(64))
        return builder.or_(bits, ir.Constant(ir.IntType(64), -1 << 16))

    signature = types.uint64(
        types.CPointer(types.uint8), types.int64, types.int64, types.int64, types.int64
    )
    return signature, generate


@njit(**_OPTIONS)
def skip_run(text, q, end, loops):
    """Where a run of bytes that do not leave a state ends; `loops`: bits 1 and 2 of a step."""
    fold = np.int64(0x20) if loops == 2 else np.int64(0)
    first, number = (np.int64(0), np.int64(128)) if loops == 6 else (np.int64(97), np.int64(26))
    while q + 16 <= end:
        run = np.int64(trailing_zeros(others16(text, q, fold, first, number)))
        q += run
        if run < 16:
            break
    return q


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
def pair_hash(key):
    h = key * np.uint64(0x9E3779B97F4A7C15)
    return (h ^ h >> np.uint64(32)) >> np.uint64(8)


@njit(**_OPTIONS)
def find_pair(table, mask, left, right):
    """Position of the value of a pair, or -1. An entry is key + 1 and value; key 0 is free."""
    key = (np.uint64(left) << np.uint64(32) | np.uint64(right)) + np.uint64(1)
    at = pair_hash(key) & mask
    while True:
        found = table[2 * at]
        if found == key:
            return np.int64(2 * at + np.uint64(1))
        if found == 0:
            return np.int64(-1)
        at = (at + np.uint64(1)) & mask


@njit(**_OPTIONS)
def find_child(table, mask, node, byte):
    """The link to a node's child in a trie, or 0: twice the child, and 1 if it has children.

    A node is given as its link. An entry is node and byte above, the link below.
    """
    if node & 1 == 0:
        return np.int64(0)
    place = child_place(table, mask, node >> 1, byte)
    return np.int64(table[place] & np.uint64(0xFFFFFFFF))


@njit(**_OPTIONS)
def child_place(table, mask, node, byte):
    """Where the entry of a node's child is, or would be."""
    key = np.uint64(node) << np.uint64(8) | np.uint64(byte)
    at = pair_hash(key) & mask
    while table[at] != 0 and table[at] >> np.uint64(32) != key:
        at = (at + np.uint64(1)) & mask
    return at


@njit(**_OPTIONS)
def insert_child(table, mask, node, byte, child):
    """As `find_child`, a new child put in where there is none."""
    place = child_place(table, mask, node, byte)
    if table[place] == 0:
        key = np.uint64(node) << np.uint64(8) | np.uint64(byte)
        table[place] = key << np.uint64(32) | np.uint64(2 * child)
    return place


@njit(**_OPTIONS)
def merge_key(left, right):
    """A pair of ids in 43 bits, the highest always set."""
    return np.uint64(1) << np.uint64(42) | np.uint64(left) << np.uint64(21) | np.uint64(right)


@njit(**_OPTIONS)
def find_merge(table, mask, values, left, right):
    """Rank above and merged id below, or all ones for a pair that does not merge."""
    key = merge_key(left, right)
    at = pair_hash(key) & mask
    while table[at] != 0:
        if table[at] >> np.uint64(21) == key:
            return values[table[at] & np.uint64(0x1FFFFF)]
        at = (at + np.uint64(1)) & mask
    return np.uint64(0xFFFFFFFFFFFFFFFF)


@njit(**_OPTIONS)
def is_token(texts, ends, token, text, start, end):
    """Whether a token has the bytes of `text` from `start` to `end`."""
    begin = ends[token - 1] if token > 0 else np.int64(0)
    return ends[token] - begin == end - start and same_bytes(text, start, texts, begin, end - start)


@njit(**_OPTIONS)
def find_text(table, mask, texts, ends, text, start, end, limit):
    """The token with these bytes, or -1; nothing of `text` is read beyond `limit`.

    An entry is the upper half of the hash, and token + 1 below: what differs is seldom looked at.
    """
    h = text_hash(text, start, end, limit)
    at = h >> np.uint64(8) & mask
    while table[at] != 0:
        if table[at] >> np.uint64(32) == h >> np.uint64(32):
            token = np.int64(table[at] & np.uint64(0xFFFFFFFF)) - 1
            if is_token(texts, ends, token, text, start, end):
                return np.int32(token)
        at = (at + np.uint64(1)) & mask
    return np.int32(-1)


@njit(**_OPTIONS)
def insert_pair(table, mask, left, right, value):
    key = (np.uint64(left) << np.uint64(32) | np.uint64(right)) + np.uint64(1)
    at = pair_hash(key) & mask
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
        if step & np.uint32(6) and q < end and text[q] < 0x80:
            q = skip_run(text, q, end, step & np.uint32(6))
    if rows[row + last_class] & np.uint32(1):
        last = q
    if q - last > 64:
        a[LOOKED_AHEAD] += q - max(last, at)
    return last
