# uses: lmworks.models.nf4_kernels_slots
# kernels: dequantize
"""NF4 codes as float32, compiled: a byte is two codes, and a table holds the pair of each byte."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lmworks.models.nf4_kernels_slots import CODES, FIRST, LAST, OUT, PAIRS, SCALES

HALF_BLOCK = 32  # bytes of a block of 64 codes


@intrinsic
def octets(context, address):
    """An address as a pointer to bytes."""

    def generate(cgctx, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.CPointer(types.uint8)(types.int64), generate


@intrinsic
def floats(context, address):
    """An address as a pointer to float32."""

    def generate(cgctx, builder, signature, args):
        return builder.inttoptr(args[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.int64), generate


def dequantize(a):
    """out[n] = value of code n * scale of its block, for the blocks FIRST to LAST."""
    codes, scales = octets(a[CODES]), floats(a[SCALES])
    pairs, out = floats(a[PAIRS]), floats(a[OUT])
    for block in range(a[FIRST], a[LAST]):
        scale = scales[block]
        for i in range(block * HALF_BLOCK, (block + 1) * HALF_BLOCK):
            byte = types.int64(codes[i])
            out[2 * i] = pairs[2 * byte] * scale
            out[2 * i + 1] = pairs[2 * byte + 1] * scale
    return 0
