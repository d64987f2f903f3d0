"""The inner loop of a packed matrix, written in vectors: a tile of 16 rows times 1 to 16 rows of x.

Where the processor multiplies bytes (AVX-512 VNNI), x is a fixed-point number: whole steps of a
2^23rd of its row's largest, in three signed digits of 8 bits. Codes are bytes already, so a
product of four of them is one instruction, the sums of a block are exact, and only one or two
float32 operations for each block and scale round. What is lost of x, at most 2^-24 of the row's
largest, is what float32 keeps of that one. Elsewhere codes become float32.

Codes of 4 bits count from 8 in both: sums of 32 then stay below 2^31, whatever they go through on
the way, and offsets are made to fit.

The 16 rows of a tile are the lanes of a vector, so nothing is summed across lanes, and a code is
unpacked once for all rows of x. A result does not depend on how many there are.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lmworks.core import compiled
from lmworks.models.kernel_vectors import lanes
from lmworks.models.packed_slots import (
    BLOCK,
    BYTES,
    BYTES_HALVES,
    BYTES_OFFSETS,
    CENTRED,
    CENTRED_HALVES,
    DIGITS,
    EIGHTS,
    FLOAT_SUM,
    HIGH,
    LOW,
    MOST_AT_ONCE,
    NIBBLES,
    NIBBLES_HALVES,
    RECORD_BYTES,
    SUM,
    TILE,
)

FIXED_POINT = compiled.has("avx512vnni", "avx512bw")

_BYTE, _SHORT, _INT, _LONG = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOAT = ir.FloatType()
_BYTES, _INTS, _FLOATS = (ir.VectorType(kind, TILE) for kind in (_BYTE, _INT, _FLOAT))
_ALL_BYTES = ir.VectorType(_BYTE, 4 * TILE)
_FUSED = ("contract",)
_HALF = BLOCK // 2
_KINDS = (NIBBLES, NIBBLES_HALVES, CENTRED, CENTRED_HALVES, BYTES, BYTES_HALVES, BYTES_OFFSETS)


@intrinsic
def tile_sums(context, kind, take, codes, scales, offsets, records, blocks, count, out):
    """out[n, r] = W[r] . x[n], in steps of x's, of one tile and the first `take` records.

    Args:
        kind: of the matrix. take: 1, 2, 4, 8 or 16.
        codes, scales, offsets, records, out: addresses; out (take, TILE) float32.
        blocks: of the tile. count: records of a block.
    """

    def generate(cgctx, builder, signature, args):
        kind, take, *rest = args
        done = builder.append_basic_block("done")
        cases = [(k, n) for k in _KINDS for n in _TAKES if k < BYTES or n < MOST_AT_ONCE]
        blocks = [builder.append_basic_block(f"kind{k}_{n}") for k, n in cases]
        switch = builder.switch(builder.add(builder.shl(kind, _long(8)), take), done)
        for (k, n), block in zip(cases, blocks, strict=True):
            switch.add_case(_long(k * 256 + n), block)
            builder.position_at_end(block)
            _tile(builder, k, n, *rest)
            builder.branch(done)
        builder.position_at_end(done)
        return cgctx.get_dummy_value()

    return types.void(*([types.int64] * 9)), generate


_TAKES = (1, 2, 4, 8, MOST_AT_ONCE)


def _tile(builder, kind, take, codes, scales, offsets, records, blocks, count, out):
    halves = 2 if kind in (NIBBLES_HALVES, CENTRED_HALVES, BYTES_HALVES) else 1
    shifted = kind in (NIBBLES, NIBBLES_HALVES, BYTES_OFFSETS)
    nibbles = kind in (NIBBLES, NIBBLES_HALVES, CENTRED, CENTRED_HALVES)
    sums = [cgutils.alloca_once(builder, _FLOATS) for _ in range(take)]
    for place in sums:
        builder.store(_all(_FLOATS, 0.0), place)
    code_bytes = TILE * BLOCK // (2 if nibbles else 1)
    with cgutils.for_range(builder, blocks, intp=_LONG) as loop:
        start = _plus(builder, codes, loop.index, code_bytes)
        _ask_ahead(builder, start, code_bytes)
        first = builder.add(
            records, builder.mul(builder.mul(loop.index, count), _long(RECORD_BYTES))
        )
        words = _words(builder, start, nibbles)
        for half in range(halves):
            group = builder.add(builder.mul(loop.index, _long(halves)), _long(half))
            scale = _vector(builder, _plus(builder, scales, group, 4 * TILE), _FLOATS)
            offset = None
            if shifted:
                offset = _vector(builder, _plus(builder, offsets, group, 4 * TILE), _FLOATS)
                if nibbles:
                    offset = _multiply_add(builder, scale, _all(_FLOATS, 8.0), offset)
            columns = range(half * 8 // halves, (half + 1) * 8 // halves)
            which = half if halves == 2 else 2
            dots = _whole_dots if FIXED_POINT else _float_dots
            found = dots(builder, kind, take, words, columns, which, first)
            sum_at = SUM if FIXED_POINT else FLOAT_SUM
            for n, (place, dot) in enumerate(zip(sums, found, strict=True)):
                total = _multiply_add(builder, dot, scale, builder.load(place))
                if offset is not None:
                    at = n * RECORD_BYTES + sum_at + 4 * which
                    x_sum = _spread(builder, _number(builder, first, at, _FLOAT), _FLOATS)
                    total = _multiply_add(builder, offset, x_sum, total)
                builder.store(total, place)
    for n, place in enumerate(sums):
        where = builder.inttoptr(builder.add(out, _long(n * TILE * 4)), _FLOATS.as_pointer())
        builder.store(builder.load(place), where, align=4)


def _whole_dots(builder, kind, take, words, columns, which, first):
    """Of integers: exact sums of code times x, as float32."""
    nibbles = kind < BYTES

    def digit(n, number, column):
        at = n * RECORD_BYTES + number * BLOCK + 4 * column
        return _spread(builder, _number(builder, first, at, _INT), _INTS)

    def dot(start, number, n, column):
        return _byte_dots(builder, start, words[column], digit(n, number, column))

    def whole(n, at):
        number = _number(builder, first, n * RECORD_BYTES + at + 4 * which, _INT)
        return _spread(builder, number, _INTS)

    zero = _all(_INTS, 0)
    # Sums of few are made digit by digit side by side, since one sum waits for its last product.
    apart = take <= 2
    parts = [[zero] * take for _ in range(DIGITS)]
    for number in range(DIGITS):
        begins = number == 0 or apart or (number == DIGITS - 1 and not nibbles)
        if not begins:
            parts[number] = [_times_256(builder, part) for part in parts[number - 1]]
        for column in columns:
            for n in range(take):
                parts[number][n] = dot(parts[number][n], number, n, column)
    found = []
    for n in range(take):
        first_digit, second, third = (part[n] for part in parts)
        if apart:
            second = builder.add(_times_256(builder, first_digit), second)
        if nibbles:
            total = builder.add(_times_256(builder, second), third) if apart else third
            total = builder.sub(total, whole(n, EIGHTS))
            found.append(builder.sitofp(total, _FLOATS))
        else:
            high = builder.sitofp(builder.sub(second, whole(n, HIGH)), _FLOATS)
            low = builder.sitofp(builder.sub(third, whole(n, LOW)), _FLOATS)
            found.append(_multiply_add(builder, high, _all(_FLOATS, 256.0), low))
    return found


def _float_dots(builder, kind, take, words, columns, which, first):
    """The same in float32, two sums each so that one need not wait for the other."""
    middle = 8 if kind < BYTES else 128
    sums = [[_all(_FLOATS, 0.0)] * 2 for _ in range(take)]
    for column in columns:
        for byte in range(4):
            code = builder.lshr(words[column], _all(_INTS, 8 * byte))
            code = builder.and_(code, _all(_INTS, 255))
            code = builder.sitofp(builder.sub(code, _all(_INTS, middle)), _FLOATS)
            for n in range(take):
                at = n * RECORD_BYTES + 4 * (4 * column + byte)
                x = _spread(builder, _number(builder, first, at, _FLOAT), _FLOATS)
                sums[n][byte % 2] = _multiply_add(builder, code, x, sums[n][byte % 2])
    return [builder.fadd(*pair) for pair in sums]


def _words(builder, start, nibbles):
    """The codes of a block as 8 vectors: in each lane four bytes, columns 4i to 4i + 3."""
    words = [
        _vector(builder, builder.add(start, _long(4 * TILE * j)), _INTS)
        for j in range(4 if nibbles else 8)
    ]
    if not nibbles:
        return words
    low = _all(_INTS, 0x0F0F0F0F)
    parts = []
    for word in words:
        parts.append(builder.and_(word, low))
        parts.append(builder.and_(builder.lshr(word, _all(_INTS, 4)), low))
    return parts


@intrinsic
def float_sums(context, take, weights, row, columns, x, x_row, out):
    """out[n, r] = W[r] . x[n] for 4 rows of float32 weights and `take` (1 or 4) rows of x.

    Args:
        weights, x, out: addresses; out (take, TILE) float32. row, x_row: bytes from one row to the
            next. columns: a multiple of 16.
    """

    def generate(cgctx, builder, signature, args):
        take, *rest = args
        done = builder.append_basic_block("done")
        blocks = {n: builder.append_basic_block(f"take{n}") for n in (1, 4)}
        switch = builder.switch(take, done)
        for n, block in blocks.items():
            switch.add_case(_long(n), block)
            builder.position_at_end(block)
            _float_tile(builder, n, *rest)
            builder.branch(done)
        builder.position_at_end(done)
        return cgctx.get_dummy_value()

    return types.void(*([types.int64] * 7)), generate


def _float_tile(builder, take, weights, row, columns, x, x_row, out):
    sums = [[cgutils.alloca_once(builder, _FLOATS) for _ in range(4)] for _ in range(take)]
    for place in (place for places in sums for place in places):
        builder.store(_all(_FLOATS, 0.0), place)
    rows = [builder.add(weights, builder.mul(row, _long(r))) for r in range(4)]
    inputs = [builder.add(x, builder.mul(x_row, _long(n))) for n in range(take)]
    steps = builder.udiv(columns, _long(TILE))
    with cgutils.for_range(builder, steps, intp=_LONG) as loop:
        at = builder.mul(loop.index, _long(4 * TILE))
        values = [_vector(builder, builder.add(start, at), _FLOATS) for start in rows]
        for start, places in zip(inputs, sums, strict=True):
            number = _vector(builder, builder.add(start, at), _FLOATS)
            for value, place in zip(values, places, strict=True):
                builder.store(_multiply_add(builder, value, number, builder.load(place)), place)
    for n, places in enumerate(sums):
        for r, place in enumerate(places):
            total = _float_total(builder, builder.load(place))
            where = builder.add(out, _long(4 * (n * TILE + r)))
            builder.store(total, builder.inttoptr(where, _FLOAT.as_pointer()), align=4)


@intrinsic
def make_record(context, x, at, inverse, record):
    """The 32 numbers from `x[at]` on as a record at an address; `inverse`: steps to the unit."""

    def generate(cgctx, builder, signature, args):
        x, at, inverse, record = args
        numbers = [
            builder.load(
                builder.bitcast(builder.gep(x, [builder.add(at, _long(i))]), _FLOATS.as_pointer()),
                align=4,
            )
            for i in (0, _HALF)
        ]
        make = _fixed_record if FIXED_POINT else _float_record
        make(builder, numbers, inverse, record)
        return cgctx.get_dummy_value()

    pointer = types.CPointer(types.float32)
    return types.void(pointer, types.int64, types.float32, types.int64), generate


def _fixed_record(builder, numbers, inverse, record):
    sums = {SUM: [], EIGHTS: [], HIGH: [], LOW: []}
    for half, x in enumerate(numbers):
        whole = _rounded(builder, builder.fmul(x, _spread(builder, inverse, _FLOATS)))
        third = _low_byte(builder, whole)
        rest = builder.ashr(builder.sub(whole, third), _all(_INTS, 8))
        second = _low_byte(builder, rest)
        first_digit = builder.ashr(builder.sub(rest, second), _all(_INTS, 8))
        for number, digit in enumerate((first_digit, second, third)):
            at = builder.add(record, _long(number * BLOCK + half * _HALF))
            where = builder.inttoptr(at, _BYTES.as_pointer())
            builder.store(builder.trunc(digit, _BYTES), where, align=1)
        for name, vector in ((SUM, whole), (HIGH, rest), (LOW, third)):
            sums[name].append(_int_total(builder, vector))
    for name in (SUM, HIGH, LOW):
        sums[name].append(builder.add(*sums[name]))
    for name, of, times in ((EIGHTS, SUM, 8), (HIGH, HIGH, 128), (LOW, LOW, 128)):
        sums[name] = [builder.mul(number, _INT(times)) for number in sums[of]]
    sums[SUM] = [builder.sitofp(number, _FLOAT) for number in sums[SUM]]
    for name, three in sums.items():
        for i, number in enumerate(three):
            kind = _FLOAT if name == SUM else _INT
            where = builder.add(record, _long(name + 4 * i))
            builder.store(number, builder.inttoptr(where, kind.as_pointer()), align=4)


def _float_record(builder, numbers, inverse, record):
    totals = []
    for half, x in enumerate(numbers):
        where = builder.add(record, _long(half * _HALF * 4))
        builder.store(x, builder.inttoptr(where, _FLOATS.as_pointer()), align=4)
        totals.append(_float_total(builder, x))
    totals.append(builder.fadd(*totals))
    for i, number in enumerate(totals):
        where = builder.add(record, _long(FLOAT_SUM + 4 * i))
        builder.store(number, builder.inttoptr(where, _FLOAT.as_pointer()), align=4)


@intrinsic
def row_values(context, kind, codes, scales, offsets, row, out, at):
    """out[at : at + 32] = the weights of one row of a block, as `dequantize` makes them.

    The product and the sum are rounded apart.
    """

    def generate(cgctx, builder, signature, args):
        kind, *rest = args
        done = builder.append_basic_block("done")
        blocks = [builder.append_basic_block(f"values{k}") for k in _KINDS]
        switch = builder.switch(kind, done)
        for k, block in zip(_KINDS, blocks, strict=True):
            switch.add_case(_long(k), block)
            builder.position_at_end(block)
            _row(builder, k, *rest)
            builder.branch(done)
        builder.position_at_end(done)
        return cgctx.get_dummy_value()

    long = types.int64
    return types.void(long, long, long, long, long, types.CPointer(types.float32), long), generate


def _row(builder, kind, codes, scales, offsets, row, out, at):
    nibbles = kind < BYTES
    halves = 2 if kind in (NIBBLES_HALVES, CENTRED_HALVES, BYTES_HALVES) else 1
    words = []
    for j in range(4 if nibbles else 8):
        where = builder.add(codes, builder.add(builder.shl(row, _long(2)), _long(4 * TILE * j)))
        words.append(builder.load(builder.inttoptr(where, _INT.as_pointer()), align=4))
    parts = []
    for word in words:
        four = builder.bitcast(word, ir.VectorType(_BYTE, 4))
        if nibbles:
            parts.append(builder.and_(four, ir.Constant(four.type, [15] * 4)))
            parts.append(builder.lshr(four, ir.Constant(four.type, [4] * 4)))
        else:
            parts.append(four)
    middle = {CENTRED: 8, CENTRED_HALVES: 8}.get(kind, 0 if nibbles else 128)
    for half in range(2):
        code = functools.reduce(lambda a, b: _joined(builder, a, b), parts[4 * half : 4 * half + 4])
        code = builder.sub(builder.zext(code, _INTS), _all(_INTS, middle))
        group = half if halves == 2 else 0
        index = builder.add(row, _long(group * TILE))
        scale = _spread(builder, _at(builder, scales, index), _FLOATS)
        value = builder.fmul(builder.sitofp(code, _FLOATS), scale)
        if kind in (NIBBLES, NIBBLES_HALVES, BYTES_OFFSETS):
            value = builder.fadd(value, _spread(builder, _at(builder, offsets, index), _FLOATS))
        where = builder.gep(out, [builder.add(at, _long(half * _HALF))])
        builder.store(value, builder.bitcast(where, _FLOATS.as_pointer()), align=4)


def _joined(builder, a, b):
    width = a.type.count + b.type.count
    if a.type.count != b.type.count:
        nothing = ir.Constant(b.type, ir.Undefined)
        wide = list(range(b.type.count)) + [b.type.count] * (a.type.count - b.type.count)
        b = builder.shuffle_vector(b, nothing, _places(wide))
    places = [*range(a.type.count), *range(a.type.count, width)]
    return builder.shuffle_vector(a, b, _places(places))


@intrinsic
def absolute(context, vector):
    """Each lane without its sign."""

    def generate(cgctx, builder, signature, args):
        bits = builder.bitcast(args[0], _INTS)
        return builder.bitcast(builder.and_(bits, _all(_INTS, 0x7FFFFFFF)), _FLOATS)

    return lanes(lanes), generate


@intrinsic
def highest(context, vector):
    """The largest lane."""

    def generate(cgctx, builder, signature, args):
        value, width = args[0], TILE
        while width > 1:
            width //= 2
            low, high = (
                builder.shuffle_vector(value, value, _places(range(at, at + width)))
                for at in (0, width)
            )
            value = builder.select(builder.fcmp_ordered(">", low, high), low, high)
        return builder.extract_element(value, _INT(0))

    return types.float32(lanes), generate


@intrinsic
def longs(context, address):
    """An address as a pointer to int64."""

    def generate(cgctx, builder, signature, args):
        return builder.inttoptr(args[0], _LONG.as_pointer())

    return types.CPointer(types.int64)(types.int64), generate


@intrinsic
def call(context, kernel, arguments):
    """What another kernel, known by its address, says to the arguments at an address."""

    def generate(cgctx, builder, signature, args):
        kind = ir.FunctionType(_LONG, [_LONG])
        function = builder.inttoptr(args[0], kind.as_pointer())
        return builder.call(function, [args[1]])

    return types.int64(types.int64, types.int64), generate


@intrinsic
def longs_from(context, pointer, at):
    """The pointer to `pointer[at]`."""

    def generate(cgctx, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    kind = types.CPointer(types.int64)
    return kind(kind, types.int64), generate


def _byte_dots(builder, sums, codes, digits):
    """sums + four products of unsigned and signed bytes in each lane."""
    kind = ir.FunctionType(_INTS, [_INTS, _ALL_BYTES, _ALL_BYTES])
    name = "llvm.x86.avx512.vpdpbusd.512"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    codes, digits = (builder.bitcast(part, _ALL_BYTES) for part in (codes, digits))
    return builder.call(function, [sums, codes, digits])


def _rounded(builder, numbers):
    """To the nearest integer; whatever is too large or none becomes the smallest."""
    kind = ir.FunctionType(_INTS, [_FLOATS, _INTS, _SHORT, _INT])
    name = "llvm.x86.avx512.mask.cvtps2dq.512"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [numbers, _all(_INTS, 0), _SHORT(-1), _INT(4)])


def _low_byte(builder, whole):
    return builder.ashr(builder.shl(whole, _all(_INTS, 24)), _all(_INTS, 24))


def _times_256(builder, whole):
    return builder.shl(whole, _all(_INTS, 8))


def _int_total(builder, vector):
    kind = ir.FunctionType(_INT, [_INTS])
    name = "llvm.vector.reduce.add.v16i32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [vector])


def _float_total(builder, vector):
    width = TILE
    while width > 1:
        width //= 2
        low, high = (
            builder.shuffle_vector(vector, vector, _places(range(at, at + width)))
            for at in (0, width)
        )
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, _INT(0))


def _ask_ahead(builder, address, num_bytes):
    """Prefetch the codes of a later block; past the end of the matrix it does nothing."""
    pointer = _BYTE.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, _INT, _INT, _INT])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
    for line in range(0, num_bytes, 64):
        where = builder.inttoptr(builder.add(address, _long(_AHEAD_BYTES + line)), pointer)
        builder.call(prefetch, [where, _INT(0), _INT(3), _INT(1)])


_AHEAD_BYTES = 4096


def _plus(builder, address, index, size):
    return builder.add(address, builder.mul(index, _long(size)))


def _vector(builder, address, kind):
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def _number(builder, address, offset, kind):
    where = builder.inttoptr(builder.add(address, _long(offset)), kind.as_pointer())
    return builder.load(where, align=4)


def _at(builder, address, index):
    where = builder.add(address, builder.shl(index, _long(2)))
    return builder.load(builder.inttoptr(where, _FLOAT.as_pointer()), align=4)


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=_FUSED), c, flags=_FUSED)


def _spread(builder, number, kind):
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, number, _INT(0))
    return builder.shuffle_vector(one, nothing, _places([0] * TILE))


def _places(lanes_: Any) -> Any:
    chosen = list(lanes_)
    return ir.Constant(ir.VectorType(_INT, len(chosen)), chosen)


def _all(kind, value):
    return ir.Constant(kind, [value] * kind.count)


def _long(value):
    return _LONG(value)
