"""Numbers into quantised blocks, as ggml's reference code rounds them without an importance matrix.

Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 take their scale from the largest number of a block (or the two
ends) and are equal to the bit to `gguf` of Python. Q4_K, Q5_K and Q6_K look for scales
(`k_quantizers`) and are equal to the bit to ggml's C code. Source: ggml-quants.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lmworks.core.block_parts import FORMATS, Parts
from lmworks.core.errors import UserError
from lmworks.core.ggml_types import TYPES

_AT_ONCE = 1 << 20  # numbers, so that what is in between stays small
_HOPELESS = 1e9  # past what the scales of any type reach; sums of squares are still finite


def quantize(array: np.ndarray, kind: str, *, name: str = "the matrix") -> np.ndarray:
    """float32 (rows, columns) -> uint8 (rows, bytes of a row).

    Args:
        kind: one of QUANTIZERS.
        name: what to call the array in an error.
    Raises: UserError for a type that can't be written, rows that do not divide into its blocks, and
        numbers that are not finite or too large for its float16 scales.
    """
    check_writable(kind, name)
    block = TYPES[kind]
    rows, columns = array.shape
    if columns % block.size:
        raise UserError(
            f"{name}: rows of {columns} do not divide into {kind} blocks of {block.size}: "
            f"take {_fitting(columns)}"
        )
    blocks = np.ascontiguousarray(array, dtype=np.float32).reshape(-1, block.size)
    packed = np.empty((len(blocks), block.num_bytes), dtype=np.uint8)
    step = _AT_ONCE // block.size
    for first in range(0, len(blocks), step):
        some = blocks[first : first + step]
        if not np.isfinite(some).all():
            raise UserError(f"{name} holds NaN or infinity, which {kind} can't")
        if np.abs(some).max(initial=0) > _HOPELESS:
            raise _too_large(kind, name)
        with np.errstate(over="ignore"):
            parts = QUANTIZERS[kind](some)
        if not all(half is None or np.isfinite(half).all() for half in (parts.d, parts.m)):
            raise _too_large(kind, name)
        packed[first : first + step] = _join(parts, kind)
    return packed.reshape(rows, -1)


def check_writable(kind: str, name: str) -> None:
    """Raises: UserError for a type that nothing here writes."""
    if kind not in QUANTIZERS:
        raise UserError(f"{name}: {kind} can't be written: take one of {', '.join(QUANTIZERS)}")


def _fitting(columns: int) -> str:
    kinds = [kind for kind in QUANTIZERS if columns % TYPES[kind].size == 0]
    return " or ".join(kinds) or "F16"


def _too_large(kind: str, name: str) -> UserError:
    return UserError(f"{name}: its numbers are too large for the float16 scales of {kind}")


def _join(parts: Parts, kind: str) -> np.ndarray:
    join = FORMATS[kind].join
    if join is None:
        raise ValueError(f"{kind} is only read")
    return join(parts)


def quantize_q8_0(array: np.ndarray) -> np.ndarray:
    """`quantize` to Q8_0, which leaves it to the caller that the numbers are finite."""
    rows, _ = array.shape
    blocks = np.ascontiguousarray(array, dtype=np.float32).reshape(-1, TYPES["Q8_0"].size)
    return _join(_q8_0(blocks), "Q8_0").reshape(rows, -1)


def _q8_0(blocks: np.ndarray) -> Parts:
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(d)
    rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))  # halves away from zero
    return Parts(codes=rounded.astype(np.int8), d=d.astype(np.float16))


def _inverse(d: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", over="ignore"):
        inverse: np.ndarray = np.float32(1) / d
    inverse[np.isinf(inverse)] = 0  # all zero, or so small that the float16 scale is zero
    return inverse


def _around_zero(blocks: np.ndarray, low: int) -> Parts:
    """The number furthest from zero becomes the code `low`, and is kept whatever its sign."""
    at = np.abs(blocks).argmax(axis=1, keepdims=True)
    d = np.take_along_axis(blocks, at, axis=1) / np.float32(low)
    codes = np.trunc(blocks * _inverse(d) + np.float32(0.5 - low)).clip(0, -2 * low - 1) + low
    return Parts(codes=codes.astype(np.int8), d=d.astype(np.float16))


def _between_ends(blocks: np.ndarray, high: int) -> Parts:
    """The least number becomes the code 0, the largest `high`."""
    least, most = (end(axis=1, keepdims=True) for end in (blocks.min, blocks.max))
    d = (most - least) / np.float32(high)
    codes = np.trunc((blocks - least) * _inverse(d) + np.float32(0.5)).clip(0, high)
    return Parts(codes=codes.astype(np.int8), d=d.astype(np.float16), m=least.astype(np.float16))


def _with_six_bits(blocks: np.ndarray, high: int, first: float, tries: int) -> Parts:
    from lmworks.core.k_quantizers import groups_between_ends

    codes = np.empty(blocks.shape, dtype=np.int8)
    floats = np.empty((len(blocks), 2), dtype=np.float32)
    small = np.empty((len(blocks), 2, 8), dtype=np.int8)
    groups_between_ends(blocks, high, np.float32(first), tries, codes, floats, small)
    d, m = (floats[:, i : i + 1].astype(np.float16) for i in range(2))
    return Parts(codes=codes, d=d, m=m, scales=small[:, 0], offsets=-small[:, 1])


def _q6_k(blocks: np.ndarray) -> Parts:
    from lmworks.core.k_quantizers import groups_around_zero

    codes = np.empty(blocks.shape, dtype=np.int8)
    d = np.empty((len(blocks), 1), dtype=np.float32)
    scales = np.empty((len(blocks), 16), dtype=np.int8)
    groups_around_zero(blocks, codes, d, scales)
    return Parts(codes=codes, d=d.astype(np.float16), scales=scales)


QUANTIZERS: dict[str, Callable[[np.ndarray], Parts]] = {
    "Q8_0": _q8_0,
    "Q4_0": lambda blocks: _around_zero(blocks, -8),
    "Q4_1": lambda blocks: _between_ends(blocks, 15),
    "Q5_0": lambda blocks: _around_zero(blocks, -16),
    "Q5_1": lambda blocks: _between_ends(blocks, 31),
    "Q4_K": lambda blocks: _with_six_bits(blocks, 15, -1.0, 20),
    "Q5_K": lambda blocks: _with_six_bits(blocks, 31, -0.5, 15),
    "Q6_K": _q6_k,
}
