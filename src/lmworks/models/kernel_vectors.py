"""Vectors for kernels: sixteen float32 numbers side by side, as a type that numba computes with.

The recurrences of this package run along time and are independent across channels, so a kernel
holds sixteen channels in one vector and needs neither transposed memory nor LLVM's guess whether a
loop can be vectorised. Where registers are narrower LLVM splits a vector. A product and a sum may
become one instruction; nothing else is reordered, so NaN and infinity keep their meaning and a
result does not depend on the number of threads.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, overload, register_model

from lmworks.models.kernel_slots import LANES

OPTIONS = {"error_model": "numpy", "boundscheck": False, "nogil": True}

_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_FUSED = ("contract",)


class Lanes(types.Type):
    """numba's type of one vector."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes = Lanes()


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """A vector is LLVM's own vector type."""

    def __init__(self, manager, kind):
        super().__init__(manager, kind, _FLOATS)


@intrinsic
def floats(context, address):
    """An address as a pointer to float32."""

    def generate(cgctx, builder, signature, args):
        return builder.inttoptr(args[0], _FLOAT.as_pointer())

    return types.CPointer(types.float32)(types.int64), generate


@intrinsic
def floats_from(context, pointer, at):
    """The pointer to `pointer[at]`."""

    def generate(cgctx, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return types.CPointer(types.float32)(types.CPointer(types.float32), types.int64), generate


@intrinsic
def load(context, pointer, at):
    """The sixteen numbers from `pointer[at]` on."""

    def generate(cgctx, builder, signature, args):
        place = builder.bitcast(builder.gep(args[0], [args[1]]), _FLOATS.as_pointer())
        return builder.load(place, align=4)

    return lanes(types.CPointer(types.float32), types.int64), generate


@intrinsic
def store(context, pointer, at, value):
    """Write the sixteen numbers from `pointer[at]` on."""

    def generate(cgctx, builder, signature, args):
        place = builder.bitcast(builder.gep(args[0], [args[1]]), _FLOATS.as_pointer())
        builder.store(args[2], place, align=4)
        return cgctx.get_dummy_value()

    return types.void(types.CPointer(types.float32), types.int64, lanes), generate


@intrinsic
def spread(context, number):
    """One number in all lanes."""

    def generate(cgctx, builder, signature, args):
        nothing = ir.Constant(_FLOATS, ir.Undefined)
        one = builder.insert_element(nothing, args[0], _INT(0))
        return builder.shuffle_vector(one, nothing, ir.Constant(_INTS, [0] * LANES))

    return lanes(types.float32), generate


@intrinsic
def total(context, vector):
    """The sum of the lanes, by halves."""

    def generate(cgctx, builder, signature, args):
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            value = _folded(builder, value, width)
        return builder.extract_element(value, _INT(0))

    return types.float32(lanes), generate


@intrinsic
def add_totals(context, pointer, at, a, b, c, d):
    """Add the sums of the lanes of four vectors to four numbers from `pointer[at]` on.

    Together they take half the instructions of four times `total`.
    """

    def generate(cgctx, builder, signature, args):
        vectors = list(args[2:])
        for width in (LANES // 2, LANES // 4):
            vectors = [_folded(builder, vector, width) for vector in vectors]
        pairs = [_joined(builder, *vectors[i : i + 2], (0, 4, 1, 5)) for i in (0, 2)]
        sums = _joined(builder, *pairs, (0, 1, 4, 5))
        kind = ir.VectorType(_FLOAT, 4)
        place = builder.bitcast(builder.gep(args[0], [args[1]]), kind.as_pointer())
        builder.store(builder.fadd(builder.load(place, align=4), sums), place, align=4)
        return cgctx.get_dummy_value()

    return types.void(types.CPointer(types.float32), types.int64, *([lanes] * 4)), generate


def _folded(builder, vector, width):
    """The lower half plus the upper half."""
    low, high = (_taken(builder, vector, vector, range(at, at + width)) for at in (0, width))
    return builder.fadd(low, high)


def _joined(builder, a, b, low):
    """Two vectors of four as one: lanes `low` of both plus the two lanes after each."""
    high = [lane + 2 for lane in low]
    return builder.fadd(_taken(builder, a, b, low), _taken(builder, a, b, high))


def _taken(builder, a, b, places):
    places = list(places)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(places)), places))


def _binary(name):
    @intrinsic
    def operation(context, left, right):
        def generate(cgctx, builder, signature, args):
            return getattr(builder, name)(args[0], args[1], flags=_FUSED)

        return lanes(lanes, lanes), generate

    return operation


def _operator(symbol, name):
    operation = _binary(name)

    @overload(symbol)
    def generate(left, right):
        if isinstance(left, Lanes) and isinstance(right, Lanes):
            return lambda left, right: operation(left, right)
        return None


for _symbol, _name in (("add", "fadd"), ("sub", "fsub"), ("mul", "fmul"), ("truediv", "fdiv")):
    _operator(getattr(operator, _symbol), _name)


@intrinsic
def larger(context, left, right):
    """The larger one in each lane; a NaN on the right stays."""

    def generate(cgctx, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return lanes(lanes, lanes), generate


@intrinsic
def exp(context, vector):
    """e to the power of each lane, within 2 units in the last place; about 1e-38 below -87.

    Source: the polynomial of Moshier's Cephes library, expf.
    """

    def generate(cgctx, builder, signature, args):
        x = _clamped(builder, args[0])
        shifted = builder.fadd(
            builder.fmul(x, _all(1.44269504088896341), flags=_FUSED), _all(_ROUND)
        )
        whole = builder.fsub(shifted, _all(_ROUND))
        rest = _multiply_add(builder, whole, _all(-0.693359375), x)
        rest = _multiply_add(builder, whole, _all(2.12194440e-4), rest)
        sum_ = _all(_EXP[0])
        for coefficient in _EXP[1:]:
            sum_ = _multiply_add(builder, sum_, rest, _all(coefficient))
        square = builder.fmul(rest, rest, flags=_FUSED)
        sum_ = builder.fadd(_multiply_add(builder, sum_, square, rest), _all(1.0), flags=_FUSED)
        bits = builder.shl(builder.bitcast(shifted, _INTS), ir.Constant(_INTS, [23] * LANES))
        power = builder.add(bits, ir.Constant(_INTS, [127 << 23] * LANES))
        return builder.fmul(sum_, builder.bitcast(power, _FLOATS), flags=_FUSED)

    return lanes(lanes), generate


# Added, it leaves the nearest whole number in the last bits of a float32.
_ROUND = 12582912.0
_EXP = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)


def _clamped(builder, x):
    x = builder.select(builder.fcmp_ordered("<", x, _all(-87.3)), _all(-87.3), x)
    return builder.select(builder.fcmp_ordered(">", x, _all(88.3)), _all(88.3), x)


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=_FUSED), c, flags=_FUSED)


def _all(value):
    return ir.Constant(_FLOATS, [value] * LANES)


@njit(**OPTIONS)
def sigmoid(x):
    """1 / (1 + exp(-x)) in each lane."""
    one = spread(1.0)
    return one / (one + exp(spread(0.0) - x))
