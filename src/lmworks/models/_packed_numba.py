"""The inner loop of a packed matrix, written in vectors: a tile of rows times 1 or 4 activations.

Left to itself, LLVM adds up the lanes of a vector after every block of 32, which costs more than
the products do. Here each row of a tile keeps a vector of partial sums until its end, and a code
becomes a weight (scale * code + offset) once for all activations. The rows of a tile lie
interleaved block by block, so memory is read as one stream, and asked for early.

A result does not depend on how many activations are computed beside it. LLVM splits the vectors
where registers are narrower. Releases the GIL, cached on disk. Memory is not bounds-checked:
`PackedMatrix` alone calls this, with arrays whose shapes it made itself.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from lmworks.core.ggml_types import BLOCK
from lmworks.models.packed import TILE

GROUP = 4  # activations for which a code becomes a weight once

_LANES = 16
_AHEAD_BYTES = 4096  # how early codes are asked for
_LINE_BYTES = 64
_FAST = ("contract",)  # multiply and add in one instruction; NaN and infinity keep their meaning

_BYTE, _INT, _LONG, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES, _FLOATS = ir.VectorType(_BYTE, _LANES), ir.VectorType(_FLOAT, _LANES)
_U: Any = numba.uint64


def _dots_of_tile(num_x: int) -> Any:
    """The body of `tile_dots` for one tile and the activations `start` to `start + num_x`."""

    @intrinsic
    def dots(
        _: Any, codes: Any, scales: Any, offsets: Any, x: Any, out: Any, tile: Any, start: Any
    ) -> Any:
        index = types.uint64
        signature = types.void(codes, scales, offsets, x, out, index, index)
        return signature, functools.partial(_emit, num_x)

    return dots


_dots_of_one, _dots_of_group = _dots_of_tile(1), _dots_of_tile(GROUP)


@njit(nogil=True, cache=True, error_model="numpy")
def tile_dots(
    codes: np.ndarray,
    scales: np.ndarray,
    offsets: np.ndarray | None,
    x: np.ndarray,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """out[n, r] = W[r] . x[n] for the rows r of the tiles `first` to `last`.

    Args:
        codes: (tiles, blocks, TILE, 32) int8, or two to the byte (tiles, blocks, TILE, 16) uint8.
        scales, offsets: (tiles, blocks, TILE, 1 or 2) float32, of a block or its halves; no
            offsets: codes of 4 bits count from -8.
        x: (N, columns) float32. out: (N, tiles * TILE) float32, written.
    """
    count = _U(len(x))
    grouped = count // _U(GROUP) * _U(GROUP)
    for tile in range(_U(first), _U(last)):
        for n in range(_U(0), grouped, _U(GROUP)):
            _dots_of_group(codes, scales, offsets, x, out, tile, n)
        for n in range(grouped, count):
            _dots_of_one(codes, scales, offsets, x, out, tile, n)


@njit(nogil=True, cache=True, error_model="numpy")
def tile_values(
    codes: np.ndarray,
    scales: np.ndarray,
    offsets: np.ndarray | None,
    out: np.ndarray,
    first: int,
    start: int,
    stop: int,
) -> None:
    """out[r] = W[first * TILE + r] for the rows r of the tiles `start` to `stop` of `out`.

    The product and the sum are rounded apart, as in `dequantize`.

    Args:
        codes, scales, offsets: as in `tile_dots`. out: (rows, columns) float32, written.
    """
    blocks, groups, half = codes.shape[1], scales.shape[3], BLOCK // 2
    nibbles, lowest = codes.shape[3] == half, np.int32(-8 if offsets is None else 0)
    for tile in range(start, stop):
        for row in range(min(TILE, len(out) - tile * TILE)):
            line = out[tile * TILE + row]
            for block in range(blocks):
                some = codes[first + tile, block, row]
                for part in range(2):
                    group = part if groups == 2 else 0
                    scale = scales[first + tile, block, row, group]
                    at = block * BLOCK + part * half
                    if nibbles:
                        for i in range(half):
                            code = np.int32((some[i] >> np.uint8(4 * part)) & np.uint8(15))
                            line[at + i] = np.float32(code + lowest) * scale
                    else:
                        for i in range(half):
                            line[at + i] = np.float32(some[part * half + i]) * scale
                    if offsets is not None:
                        offset = offsets[first + tile, block, row, group]
                        for i in range(half):
                            line[at + i] += offset


def _emit(num_x: int, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    arrays: list[Any] = [
        None if kind is types.none else context.make_array(kind)(context, builder, value)
        for kind, value in zip(signature.args[:5], arguments[:5], strict=True)
    ]
    codes, scales, offsets, x, out = arrays
    tile, start = arguments[5:]
    nibbles = signature.args[0].dtype == types.uint8
    # The layout is the kernel's own: a second group is there or is not, once for the whole.
    groups = cgutils.unpack_tuple(builder, scales.shape, 4)[3]
    last_group = builder.sub(groups, _long(1))
    blocks = cgutils.unpack_tuple(builder, codes.shape, 4)[1]
    ids = [builder.add(start, _long(n)) for n in range(num_x)]
    sums = [[_zeros(builder) for _ in range(num_x)] for _ in range(TILE)]
    with cgutils.for_range(builder, blocks, intp=_LONG) as loop:
        first = builder.mul(builder.add(builder.mul(tile, blocks), loop.index), _long(TILE))
        _ask_ahead(builder, codes.data, first, nibbles)
        pieces = [
            _activation(builder, x.data, builder.add(builder.mul(n, blocks), loop.index))
            for n in ids
        ]
        for row in range(TILE):
            at = builder.add(first, _long(row))
            group = builder.mul(at, groups)
            centred = offsets is None
            for half, code in enumerate(_codes(builder, codes.data, at, nibbles, centred)):
                # Of one group both halves read the same number.
                where = [builder.add(group, last_group) if half else group]
                scale = _spread(builder, builder.load(builder.gep(scales.data, where)))
                weights = builder.fmul(code, scale, flags=_FAST)
                if offsets is not None:
                    offset = _spread(builder, builder.load(builder.gep(offsets.data, where)))
                    weights = builder.fadd(weights, offset, flags=_FAST)
                for n in range(num_x):
                    product = builder.fmul(weights, pieces[n][half], flags=_FAST)
                    total = builder.fadd(builder.load(sums[row][n]), product, flags=_FAST)
                    builder.store(total, sums[row][n])
    rows = builder.mul(cgutils.unpack_tuple(builder, codes.shape, 4)[0], _long(TILE))
    for row in range(TILE):
        for n, index in enumerate(ids):
            to = builder.add(builder.mul(index, rows), builder.mul(tile, _long(TILE)))
            total = _sum_of_lanes(builder, builder.load(sums[row][n]))
            builder.store(total, builder.gep(out.data, [builder.add(to, _long(row))]))
    return context.get_dummy_value()


def _activation(builder: Any, x: Any, block: Any) -> list[Any]:
    """The 32 numbers of a block of x, as vectors."""
    first = builder.mul(block, _long(BLOCK))
    starts = [builder.add(first, _long(at)) for at in range(0, BLOCK, _LANES)]
    return [_load(builder, x, start, _FLOATS, 4) for start in starts]


def _codes(builder: Any, codes: Any, at: Any, nibbles: bool, centred: bool) -> list[Any]:
    """The codes of one row's block as float32 vectors; nibbles without offsets count from -8."""
    if not nibbles:
        starts = [
            builder.add(builder.mul(at, _long(BLOCK)), _long(i)) for i in range(0, BLOCK, _LANES)
        ]
        return [builder.sitofp(_load(builder, codes, s, _BYTES, 1), _FLOATS) for s in starts]
    both = _load(builder, codes, builder.mul(at, _long(BLOCK // 2)), _BYTES, 1)
    halves = [builder.and_(both, _all(_BYTES, 15)), builder.lshr(both, _all(_BYTES, 4))]
    if centred:
        halves = [builder.sub(half, _all(_BYTES, 8)) for half in halves]
    return [builder.sitofp(half, _FLOATS) for half in halves]


def _ask_ahead(builder: Any, codes: Any, at: Any, nibbles: bool) -> None:
    """Prefetch the codes of a later block; past the end of the matrix it does nothing."""
    num_bytes = BLOCK // 2 if nibbles else BLOCK
    prefetch = builder.module.declare_intrinsic(
        "llvm.prefetch",
        [_BYTE.as_pointer()],
        ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _INT, _INT, _INT]),
    )
    for line in range(0, TILE * num_bytes, _LINE_BYTES):
        start = builder.add(builder.mul(at, _long(num_bytes)), _long(_AHEAD_BYTES + line))
        read, keep, data = _INT(0), _INT(3), _INT(1)
        builder.call(prefetch, [builder.gep(codes, [start]), read, keep, data])


def _sum_of_lanes(builder: Any, vector: Any) -> Any:
    """In a fixed order, by halves, so that it is the same on every machine."""
    lanes = _LANES
    while lanes > 1:
        lanes //= 2
        low, high = (
            builder.shuffle_vector(vector, vector, _places(range(start, start + lanes)))
            for start in (0, lanes)
        )
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, _INT(0))


def _load(builder: Any, data: Any, at: Any, kind: Any, align: int) -> Any:
    pointer = builder.bitcast(builder.gep(data, [at]), kind.as_pointer())
    return builder.load(pointer, align=align)


def _zeros(builder: Any) -> Any:
    place = cgutils.alloca_once(builder, _FLOATS)
    builder.store(_all(_FLOATS, 0.0), place)
    return place


def _spread(builder: Any, number: Any) -> Any:
    """One number in all lanes."""
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    one = builder.insert_element(undefined, number, _INT(0))
    return builder.shuffle_vector(one, undefined, _places([0] * _LANES))


def _places(lanes: Any) -> Any:
    lanes = list(lanes)
    return ir.Constant(ir.VectorType(_INT, len(lanes)), lanes)


def _all(kind: Any, value: Any) -> Any:
    return ir.Constant(kind, [value] * _LANES)


def _long(value: int) -> Any:
    return _LONG(value)
