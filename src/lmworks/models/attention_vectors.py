"""Attention over 16 positions at a time, in vectors: the lanes are positions, then dimensions."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lmworks.models.fused_slots import HEAD_DIMS
from lmworks.models.kernel_vectors import LANES, lanes

_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_FUSED = ("contract",)
_POINTER = types.CPointer(types.float32)


@intrinsic
def sixteen_scores(context, head_dim, query, keys):
    """Query (head_dim,) times each of 16 keys, (16, head_dim) -> one number in each lane."""

    def generate(cgctx, builder, signature, args):
        head_dim, query, keys = args
        result = cgutils.alloca_once(builder, _FLOATS)
        builder.store(ir.Constant(_FLOATS, [0.0] * LANES), result)

        def of(size):
            builder.store(_scores(builder, size, query, keys), result)

        _by_size(builder, head_dim, of)
        return builder.load(result)

    return lanes(types.int64, _POINTER, _POINTER), generate


@intrinsic
def add_weighted(context, head_dim, weights, values, first, last, out):
    """out (head_dim,) += weights[s] * values[s], (16, head_dim), for s from `first` to `last`."""

    def generate(cgctx, builder, signature, args):
        head_dim, *rest = args
        _by_size(builder, head_dim, lambda size: _weighted(builder, size, *rest))
        return cgctx.get_dummy_value()

    long = types.int64
    return types.void(long, _POINTER, _POINTER, long, long, _POINTER), generate


@intrinsic
def seen(context, scores, start, low, high):
    """The scores of positions start, start + 1, ..., the lowest there is outside low to high."""

    def generate(cgctx, builder, signature, args):
        scores, start, low, high = args
        steps = ir.Constant(_INTS, list(range(LANES)))
        first, low, high = (_spread(builder, builder.trunc(n, _INT)) for n in (start, low, high))
        at = builder.add(first, steps)
        inside = builder.and_(
            builder.icmp_signed(">=", at, low), builder.icmp_signed("<=", at, high)
        )
        return builder.select(inside, scores, ir.Constant(_FLOATS, [-3e38] * LANES))

    return lanes(lanes, types.int64, types.int64, types.int64), generate


@intrinsic
def as_float(context, bits):
    """The float32 with these bits."""

    def generate(cgctx, builder, signature, args):
        return builder.bitcast(builder.trunc(args[0], _INT), _FLOAT)

    return types.float32(types.int64), generate


@intrinsic
def table_entry(context, address, index):
    """The int32 number `index` of a table."""

    def generate(cgctx, builder, signature, args):
        where = builder.add(args[0], builder.shl(args[1], _LONG(2)))
        number = builder.load(builder.inttoptr(where, _INT.as_pointer()), align=4)
        return builder.sext(number, _LONG)

    return types.int64(types.int64, types.int64), generate


def _by_size(builder, head_dim, make):
    done = builder.append_basic_block("sized")
    blocks = {size: builder.append_basic_block(f"size{size}") for size in HEAD_DIMS}
    switch = builder.switch(head_dim, done)
    for size, block in blocks.items():
        switch.add_case(_LONG(size), block)
        builder.position_at_end(block)
        make(size)
        builder.branch(done)
    builder.position_at_end(done)


def _scores(builder, size, query, keys):
    sums = [cgutils.alloca_once(builder, _FLOATS) for _ in range(LANES)]
    for place in sums:
        builder.store(ir.Constant(_FLOATS, [0.0] * LANES), place)
    with cgutils.for_range(builder, _LONG(size // LANES), intp=_LONG) as loop:
        at = builder.mul(loop.index, _LONG(LANES))
        part = _load(builder, query, at)
        for s, place in enumerate(sums):
            key = _load(builder, keys, builder.add(at, _LONG(s * size)))
            builder.store(_multiply_add(builder, part, key, builder.load(place)), place)
    vectors = [builder.load(place) for place in sums]
    width = LANES
    while width > 1:  # two vectors become one whose parts are half as wide
        half = len(vectors) // 2
        vectors = [_folded(builder, *pair, width) for pair in zip(vectors[:half], vectors[half:])]
        width //= 2
    return vectors[0]


def _folded(builder, a, b, width):
    low, high = [], []
    for start in range(0, LANES, width):
        for vector in (0, LANES):
            low += range(vector + start, vector + start + width // 2)
            high += range(vector + start + width // 2, vector + start + width)
    parts = (builder.shuffle_vector(a, b, ir.Constant(_INTS, places)) for places in (low, high))
    return builder.fadd(*parts)


def _weighted(builder, size, weights, values, first, last, out):
    starts = [_LONG(at) for at in range(0, size, LANES)]
    sums = [cgutils.alloca_once(builder, _FLOATS) for _ in starts]
    for place, at in zip(sums, starts):
        builder.store(_load(builder, out, at), place)
    with cgutils.for_range_slice(builder, first, last, _LONG(1), intp=_LONG) as (s, _):
        weight = _spread(builder, builder.load(builder.gep(weights, [s])))
        row = builder.mul(s, _LONG(size))
        for place, at in zip(sums, starts):
            value = _load(builder, values, builder.add(row, at))
            builder.store(_multiply_add(builder, weight, value, builder.load(place)), place)
    for place, at in zip(sums, starts):
        where = builder.bitcast(builder.gep(out, [at]), _FLOATS.as_pointer())
        builder.store(builder.load(place), where, align=4)


def _load(builder, pointer, at):
    place = builder.bitcast(builder.gep(pointer, [at]), _FLOATS.as_pointer())
    return builder.load(place, align=4)


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=_FUSED), c, flags=_FUSED)


def _spread(builder, number):
    kind = ir.VectorType(number.type, LANES)
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, number, _INT(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(_INTS, [0] * LANES))
