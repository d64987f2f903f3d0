"""Numbers into quantised blocks, as ggml's reference code rounds them.

Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 take their scale from the largest number of a block (or the two
ends) and are equal to the bit to `gguf` of Python. The K types, and all but Q8_0 with an importance
matrix, look for scales (`k_quantizers`) and are equal to the bit to ggml's C code.
Source: ggml-quants.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from lmworks.core.block_parts import FORMATS, UNEVEN, Parts
from lmworks.core.errors import UserError
from lmworks.core.ggml_types import BLOCK, SUPER_BLOCK, TYPES

_AT_ONCE = 1 << 20  # numbers, so that what is in between stays small
_HOPELESS = 1e9  # past what the scales of any type reach; sums of squares are still finite


def quantize(
    array: np.ndarray,
    kind: str,
    *,
    importance: np.ndarray | None = None,
    name: str = "the matrix",
) -> np.ndarray:
    """float32 (rows, columns) -> uint8 (rows, bytes of a row).

    Args:
        kind: one of QUANTIZERS.
        importance: (columns,) how much an error in a column matters, not negative: the mean square
            of what it is multiplied with. Q8_0 takes no notice.
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
    weights = _checked(importance, columns, name)
    values = np.ascontiguousarray(array, dtype=np.float32)
    packed = np.empty((rows, columns // block.size * block.num_bytes), dtype=np.uint8)
    step = max(1, _AT_ONCE // columns)
    for first in range(0, rows, step):
        some = values[first : first + step]
        if not np.isfinite(some).all():
            raise UserError(f"{name} holds NaN or infinity, which {kind} can't")
        if np.abs(some).max(initial=0) > _HOPELESS:
            raise _too_large(kind, name)
        with np.errstate(over="ignore"):
            parts = QUANTIZERS[kind](some, weights)
        if not all(half is None or np.isfinite(half).all() for half in (parts.d, parts.m)):
            raise _too_large(kind, name)
        packed[first : first + step] = _join(parts, kind).reshape(len(some), -1)
    return packed


def _checked(importance: np.ndarray | None, columns: int, name: str) -> np.ndarray | None:
    """float32 (columns,). Raises: UserError for importance that can't be any."""
    if importance is None:
        return None
    weights = np.ascontiguousarray(importance, dtype=np.float32)
    if weights.shape != (columns,):
        raise UserError(f"{name}: importance of {weights.size} columns for rows of {columns}")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise UserError(f"{name}: importance must be finite and not negative")
    return weights


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


def _q8_0(rows: np.ndarray, importance: np.ndarray | None = None) -> Parts:
    blocks = rows.reshape(-1, BLOCK)
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(d)
    rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))  # halves away from zero
    return Parts(codes=rounded.astype(np.int8), d=d.astype(np.float16))


def _inverse(d: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", over="ignore"):
        inverse: np.ndarray = np.float32(1) / d
    inverse[np.isinf(inverse)] = 0  # all zero, or so small that the float16 scale is zero
    return inverse


def _around_zero(rows: np.ndarray, importance: np.ndarray | None, low: int) -> Parts:
    """The number furthest from zero becomes the code `low`, and is kept whatever its sign."""
    if importance is not None:
        return _weighed(rows, importance, -low, shifted=False)
    blocks = rows.reshape(-1, BLOCK)
    at = np.abs(blocks).argmax(axis=1, keepdims=True)
    d = np.take_along_axis(blocks, at, axis=1) / np.float32(low)
    codes = np.trunc(blocks * _inverse(d) + np.float32(0.5 - low)).clip(0, -2 * low - 1) + low
    return Parts(codes=codes.astype(np.int8), d=d.astype(np.float16))


def _between_ends(rows: np.ndarray, importance: np.ndarray | None, high: int) -> Parts:
    """The least number becomes the code 0, the largest `high`."""
    if importance is not None:
        return _weighed(rows, importance, high, shifted=True)
    blocks = rows.reshape(-1, BLOCK)
    least, most = (end(axis=1, keepdims=True) for end in (blocks.min, blocks.max))
    d = (most - least) / np.float32(high)
    codes = np.trunc((blocks - least) * _inverse(d) + np.float32(0.5)).clip(0, high)
    return Parts(codes=codes.astype(np.int8), d=d.astype(np.float16), m=least.astype(np.float16))


def _weighed(rows: np.ndarray, importance: np.ndarray, largest: int, *, shifted: bool) -> Parts:
    from lmworks.core.k_quantizers import weighed_around_zero, weighed_between_ends

    codes = np.empty(rows.shape, dtype=np.int8)
    d, m = (np.empty((len(rows), rows.shape[1] // BLOCK), dtype=np.float32) for _ in range(2))
    if shifted:
        weighed_between_ends(rows, importance, largest, codes, d, m)
    else:
        weighed_around_zero(rows, importance, largest, codes, d)
    halves = [each.reshape(-1, 1).astype(np.float16) for each in (d, m)[: 1 + shifted]]
    return Parts(codes=codes.reshape(-1, BLOCK), d=halves[0], m=halves[1] if shifted else None)


_NONE = np.empty(0, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class _BetweenEnds:
    """Q2_K, Q4_K and Q5_K; see `k_quantizers.groups_between_ends`."""

    high: int
    groups: int
    most: int
    first: float
    tries: int

    def __call__(self, rows: np.ndarray, importance: np.ndarray | None = None) -> Parts:
        from lmworks.core.k_quantizers import groups_between_ends

        blocks = rows.reshape(-1, SUPER_BLOCK)
        weights = _NONE if importance is None else importance
        codes = np.empty(blocks.shape, dtype=np.int8)
        floats = np.empty((len(blocks), 2), dtype=np.float32)
        small = np.empty((len(blocks), 2, self.groups), dtype=np.int8)
        groups_between_ends(
            blocks, weights, self.high, self.most, np.float32(self.first), self.tries,
            codes, floats, small,
        )  # fmt: skip
        d, m = (floats[:, i : i + 1].astype(np.float16) for i in range(2))
        return Parts(codes=codes, d=d, m=m, scales=small[:, 0], offsets=-small[:, 1])


def _scaled_groups(rows: np.ndarray, importance: np.ndarray | None, middle: int) -> Parts:
    """Q3_K and Q6_K."""
    from lmworks.core.k_quantizers import groups_around_zero

    blocks = rows.reshape(-1, SUPER_BLOCK)
    codes = np.empty(blocks.shape, dtype=np.int8)
    d = np.empty((len(blocks), 1), dtype=np.float32)
    scales = np.empty((len(blocks), 16), dtype=np.int8)
    groups_around_zero(
        blocks, _NONE if importance is None else importance, middle, codes, d, scales
    )
    return Parts(codes=codes, d=d.astype(np.float16), scales=scales)


def _uneven(rows: np.ndarray, importance: np.ndarray | None, size: int) -> Parts:
    """IQ4_NL and IQ4_XS."""
    from lmworks.core.uneven_blocks import uneven_blocks

    blocks, table = rows.reshape(-1, size), UNEVEN.astype(np.float32)
    codes = np.empty(blocks.shape, dtype=np.int8)
    d = np.empty((len(blocks), 1), dtype=np.float32)
    scales = np.empty((len(blocks), size // BLOCK), dtype=np.int8)
    uneven_blocks(blocks, _NONE if importance is None else importance, table, codes, d, scales)
    return Parts(
        codes=codes, d=d.astype(np.float16), scales=scales if size == SUPER_BLOCK else None
    )


class Quantizer(Protocol):
    """(R, columns) float32, and how much the columns matter, to the blocks of the rows in order."""

    def __call__(self, rows: np.ndarray, importance: np.ndarray | None = None) -> Parts: ...


QUANTIZERS: dict[str, Quantizer] = {
    "Q8_0": _q8_0,
    "Q4_0": lambda rows, importance=None: _around_zero(rows, importance, -8),
    "Q4_1": lambda rows, importance=None: _between_ends(rows, importance, 15),
    "Q5_0": lambda rows, importance=None: _around_zero(rows, importance, -16),
    "Q5_1": lambda rows, importance=None: _between_ends(rows, importance, 31),
    "Q2_K": _BetweenEnds(high=3, groups=16, most=15, first=-0.5, tries=15),
    "Q3_K": lambda rows, importance=None: _scaled_groups(rows, importance, 4),
    "Q4_K": _BetweenEnds(high=15, groups=8, most=63, first=-1.0, tries=20),
    "Q5_K": _BetweenEnds(high=31, groups=8, most=63, first=-0.5, tries=15),
    "Q6_K": lambda rows, importance=None: _scaled_groups(rows, importance, 32),
    "IQ4_NL": lambda rows, importance=None: _uneven(rows, importance, BLOCK),
    "IQ4_XS": lambda rows, importance=None: _uneven(rows, importance, SUPER_BLOCK),
}
