"""Quantised blocks taken apart into codes and scales, and put together again.

A block of `size` numbers holds one or two float16 (d, m), a code per number and, in the types with
super-blocks (K), a small whole number for each group of 16 or 32 that scales the codes (s) and
perhaps another that shifts them (o):

    value = (d s) code + m o          s = 1, o = 1 where a type has none

| type | bytes | size | group | codes | s | o |
|---|---|---|---|---|---|---|
| Q4_0 | 18 | 32 | 32 | -8 to 7 | | |
| Q4_1 | 20 | 32 | 32 | 0 to 15 | | 1 |
| Q5_0 | 22 | 32 | 32 | -16 to 15 | | |
| Q5_1 | 24 | 32 | 32 | 0 to 31 | | 1 |
| Q8_0 | 34 | 32 | 32 | -127 to 127 | | |
| IQ4_NL | 18 | 32 | 32 | of a table | | |
| Q2_K | 84 | 256 | 16 | 0 to 3 | 0 to 15 | -15 to 0 |
| Q3_K | 110 | 256 | 16 | -4 to 3 | -32 to 31 | |
| Q4_K | 144 | 256 | 32 | 0 to 15 | 0 to 63 | -63 to 0 |
| Q5_K | 176 | 256 | 32 | 0 to 31 | 0 to 63 | -63 to 0 |
| Q6_K | 210 | 256 | 16 | -32 to 31 | -128 to 127 | |
| IQ4_XS | 136 | 256 | 32 | of a table | -32 to 31 | |

Both float32 products are exact, and the order of the two is that of ggml, so the values are equal
to the bit to those of its reference code (ggml-quants; `gguf` of Python is the oracle).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

# The values of the 4 bits of IQ4_NL and IQ4_XS: closer to each other around zero.
UNEVEN = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int8
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """N blocks; see the module.

    Attributes:
        codes: (N, size) int8.
        d, m: (N, 1) float16; m is None where a type has no shift.
        scales, offsets: (N, groups) int8, or None for all 1.
    """

    codes: np.ndarray
    d: np.ndarray
    m: np.ndarray | None = None
    scales: np.ndarray | None = None
    offsets: np.ndarray | None = None

    def steps(self) -> np.ndarray:
        """(N, groups) float32: between two codes that follow each other."""
        d = self.d.astype(np.float32)
        return d if self.scales is None else d * self.scales.astype(np.float32)

    def shifts(self) -> np.ndarray | None:
        """(N, groups) float32: the value of code 0, where it is not 0."""
        if self.m is None:
            return None
        m = self.m.astype(np.float32)
        # Negated last: ggml subtracts, and the sign of a zero is to be its.
        return m if self.offsets is None else m * -(-self.offsets).astype(np.float32)

    def values(self) -> np.ndarray:
        """(N, size) float32."""
        steps, shifts = self.steps(), self.shifts()
        groups = self.codes.reshape(*steps.shape, -1).astype(np.float32)
        groups *= steps[..., None]
        if shifts is not None:
            groups += shifts[..., None]
        return groups.reshape(self.codes.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """How one type's blocks are made up.

    Attributes:
        group: numbers that share a step.
        low, high: the codes that may be written.
        split, join: (N, bytes) uint8 to `Parts` and back; a type without `join` is only read.
        scales, offsets: the least and the largest s and o; None for those that have none.
        shifted: whether there is an m.
        table: whether codes are only those of UNEVEN.
    """

    group: int
    low: int
    high: int
    split: Callable[[np.ndarray], Parts]
    join: Callable[[Parts], np.ndarray] | None = None
    scales: tuple[int, int] | None = None
    offsets: tuple[int, int] | None = None
    shifted: bool = False
    table: bool = False


def _f16(raw: np.ndarray) -> np.ndarray:
    return raw.copy().view(np.float16)  # (N, 2) uint8 -> (N, 1)


def _raw(halves: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(halves, dtype=np.float16).view(np.uint8)  # (N, 1) -> (N, 2)


def _bits(raw: np.ndarray, width: int) -> np.ndarray:
    """(..., bytes) -> (..., 8 / width, bytes): the lowest `width` bits of all bytes, the next."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return (raw[..., None, :] >> shifts) & np.uint8((1 << width) - 1)


def _from_bits(fields: np.ndarray, width: int) -> np.ndarray:
    """What `_bits` undoes: (..., 8 / width, bytes) -> (..., bytes)."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    joined: np.ndarray = np.bitwise_or.reduce(fields.astype(np.uint8) << shifts, axis=-2)
    return joined


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """(N, 16) -> (N, 32): the low halves of all bytes, then the high ones."""
    return _bits(raw, 4).reshape(len(raw), -1)


def _to_nibbles(codes: np.ndarray) -> np.ndarray:
    return _from_bits(codes.reshape(len(codes), 2, 16) & 15, 4)  # (N, 32) -> (N, 16)


def _fifth_bits(raw: np.ndarray) -> np.ndarray:
    """(N, 4) -> (N, 32) of 0 or 16: bit i belongs to number i."""
    return np.unpackbits(raw, axis=1, bitorder="little") << np.uint8(4)


def _to_fifth_bits(codes: np.ndarray) -> np.ndarray:
    return np.packbits(codes >> 4 & 1, axis=1, bitorder="little")  # (N, 32) -> (N, 4)


def _minus(codes: np.ndarray, by: int) -> np.ndarray:
    return (codes.view(np.int8) - np.int8(by)).reshape(len(codes), -1)


def _plus(codes: np.ndarray, by: int) -> np.ndarray:
    return (codes + np.int8(by)).view(np.uint8)


def _split_q4_0(raw: np.ndarray) -> Parts:
    return Parts(d=_f16(raw[:, :2]), codes=_minus(_nibbles(raw[:, 2:]), 8))


def _join_q4_0(parts: Parts) -> np.ndarray:
    return np.hstack([_raw(parts.d), _to_nibbles(_plus(parts.codes, 8))])


def _split_q4_1(raw: np.ndarray) -> Parts:
    codes = _nibbles(raw[:, 4:]).view(np.int8)
    return Parts(d=_f16(raw[:, :2]), m=_f16(raw[:, 2:4]), codes=codes)


def _join_q4_1(parts: Parts) -> np.ndarray:
    return np.hstack([_raw(parts.d), _shift(parts), _to_nibbles(parts.codes.view(np.uint8))])


def _split_q5_0(raw: np.ndarray) -> Parts:
    codes = _nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6])
    return Parts(d=_f16(raw[:, :2]), codes=_minus(codes, 16))


def _join_q5_0(parts: Parts) -> np.ndarray:
    codes = _plus(parts.codes, 16)
    return np.hstack([_raw(parts.d), _to_fifth_bits(codes), _to_nibbles(codes)])


def _split_q5_1(raw: np.ndarray) -> Parts:
    codes = _nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8])
    return Parts(d=_f16(raw[:, :2]), m=_f16(raw[:, 2:4]), codes=codes.view(np.int8))


def _join_q5_1(parts: Parts) -> np.ndarray:
    codes = parts.codes.view(np.uint8)
    floats = [_raw(parts.d), _shift(parts)]
    return np.hstack([*floats, _to_fifth_bits(codes), _to_nibbles(codes)])


def _split_q8_0(raw: np.ndarray) -> Parts:
    return Parts(d=_f16(raw[:, :2]), codes=raw[:, 2:].view(np.int8))


def _join_q8_0(parts: Parts) -> np.ndarray:
    return np.hstack([_raw(parts.d), parts.codes.view(np.uint8)])


def _split_iq4_nl(raw: np.ndarray) -> Parts:
    return Parts(d=_f16(raw[:, :2]), codes=UNEVEN[_nibbles(raw[:, 2:])])


def _split_q2_k(raw: np.ndarray) -> Parts:
    codes = _bits(raw[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 256)
    return Parts(
        codes=codes.view(np.int8),
        d=_f16(raw[:, 80:82]),
        m=_f16(raw[:, 82:]),
        scales=(raw[:, :16] & 15).view(np.int8),
        offsets=-(raw[:, :16] >> 4).view(np.int8),
    )


def _join_q2_k(parts: Parts) -> np.ndarray:
    if parts.scales is None or parts.offsets is None:
        raise ValueError("blocks of this type have scales and offsets for each group")
    small = parts.scales.view(np.uint8) | (-parts.offsets).view(np.uint8) << np.uint8(4)
    return np.hstack([small, _pairs(parts.codes), _raw(parts.d), _shift(parts)])


def _pairs(codes: np.ndarray) -> np.ndarray:
    """(N, 256) -> (N, 64): the two lowest bits of four codes, 32 apart, in a byte."""
    return _from_bits((codes & 3).reshape(-1, 2, 4, 32), 2).reshape(-1, 64)


def _split_q3_k(raw: np.ndarray) -> Parts:
    high = _bits(raw[:, :32], 1).reshape(len(raw), 256)
    low = _bits(raw[:, 32:96].reshape(-1, 2, 32), 2).reshape(len(raw), 256)
    packed = raw[:, 96:108]
    upper = _bits(packed[:, 8:], 2).reshape(len(raw), 16) << np.uint8(4)
    scales = _bits(packed[:, :8], 4).reshape(-1, 16) | upper
    return Parts(
        codes=_minus(low | high << np.uint8(2), 4), d=_f16(raw[:, 108:]), scales=_minus(scales, 32)
    )


def _join_q3_k(parts: Parts) -> np.ndarray:
    if parts.scales is None:
        raise ValueError("blocks of this type have scales for each group")
    codes, scales = _plus(parts.codes, 4), _plus(parts.scales, 32)
    high = _from_bits((codes >> np.uint8(2)).reshape(-1, 8, 32), 1)
    low_scales = _from_bits((scales & 15).reshape(-1, 2, 8), 4)
    high_scales = _from_bits((scales >> np.uint8(4)).reshape(-1, 4, 4), 2)
    return np.hstack([high, _pairs(codes), low_scales, high_scales, _raw(parts.d)])


def _split_q4_k(raw: np.ndarray) -> Parts:
    codes = _bits(raw[:, 16:].reshape(-1, 4, 32), 4).reshape(-1, 256)
    return _with_scales(raw, codes)


def _join_q4_k(parts: Parts) -> np.ndarray:
    codes = _from_bits(parts.codes.reshape(-1, 4, 2, 32), 4).reshape(-1, 128)
    return np.hstack([_raw(parts.d), _shift(parts), _packed_scales(parts), codes])


def _split_q5_k(raw: np.ndarray) -> Parts:
    low = _bits(raw[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    codes = low | _bits(raw[:, 16:48], 1) << np.uint8(4)
    return _with_scales(raw, codes.reshape(-1, 256))


def _join_q5_k(parts: Parts) -> np.ndarray:
    codes = parts.codes.view(np.uint8)
    high = _from_bits((codes >> np.uint8(4)).reshape(-1, 8, 32), 1)
    low = _from_bits((codes & 15).reshape(-1, 4, 2, 32), 4).reshape(-1, 128)
    return np.hstack([_raw(parts.d), _shift(parts), _packed_scales(parts), high, low])


def _with_scales(raw: np.ndarray, codes: np.ndarray) -> Parts:
    """The parts of Q4_K and Q5_K: 12 bytes hold 8 scales and 8 offsets of 6 bits each.

    Four bytes hold the first four scales and, in their upper bits, the upper bits of the other
    four; four bytes the offsets likewise; the last four the lower bits of the others.
    """
    first, second, rest = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = np.hstack([first & 63, (rest & 15) | (first >> 6) << np.uint8(4)])
    offsets = np.hstack([second & 63, rest >> 4 | (second >> 6) << np.uint8(4)])
    return Parts(
        codes=codes.view(np.int8),
        d=_f16(raw[:, :2]),
        m=_f16(raw[:, 2:4]),
        scales=scales.view(np.int8),
        offsets=-offsets.view(np.int8),
    )


def _packed_scales(parts: Parts) -> np.ndarray:
    if parts.scales is None or parts.offsets is None:
        raise ValueError("blocks of this type have scales and offsets for each group")
    scales, offsets = parts.scales.astype(np.uint8), (-parts.offsets).astype(np.uint8)
    rest = (scales[:, 4:] & 15) | (offsets[:, 4:] & 15) << np.uint8(4)
    return np.hstack(
        [one[:, :4] | one[:, 4:] >> 4 << np.uint8(6) for one in (scales, offsets)] + [rest]
    )


def _split_q6_k(raw: np.ndarray) -> Parts:
    low = _bits(raw[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 256)
    high = _bits(raw[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 256)
    return Parts(
        codes=_minus(low | high << np.uint8(4), 32),
        d=_f16(raw[:, 208:]),
        scales=raw[:, 192:208].view(np.int8),
    )


def _join_q6_k(parts: Parts) -> np.ndarray:
    if parts.scales is None:
        raise ValueError("blocks of this type have scales for each group")
    codes = _plus(parts.codes, 32)
    low = _from_bits((codes & 15).reshape(-1, 2, 2, 64), 4).reshape(-1, 128)
    high = _from_bits((codes >> np.uint8(4)).reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    return np.hstack([low, high, parts.scales.view(np.uint8), _raw(parts.d)])


def _split_iq4_xs(raw: np.ndarray) -> Parts:
    low = np.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = _bits(raw[:, 2:4].reshape(-1, 2, 1), 2).reshape(-1, 8) << np.uint8(4)
    codes = UNEVEN[_bits(raw[:, 8:].reshape(-1, 8, 16), 4).reshape(-1, 256)]
    return Parts(codes=codes, d=_f16(raw[:, :2]), scales=_minus(low | high, 32))


def _join_iq4_nl(parts: Parts) -> np.ndarray:
    return np.hstack([_raw(parts.d), _to_nibbles(_places(parts))])


def _join_iq4_xs(parts: Parts) -> np.ndarray:
    if parts.scales is None:
        raise ValueError("blocks of this type have scales for each group")
    scales = _plus(parts.scales, 32)
    high = _from_bits((scales >> np.uint8(4)).reshape(-1, 2, 4, 1), 2).reshape(-1, 2)
    low = _from_bits((scales & 15).reshape(-1, 4, 2, 1), 4).reshape(-1, 4)
    codes = _from_bits(_places(parts).reshape(-1, 8, 2, 16), 4).reshape(-1, 128)
    return np.hstack([_raw(parts.d), high, low, codes])


def _places(parts: Parts) -> np.ndarray:
    """Where the codes stand in the table. Raises: ValueError for one that it doesn't hold."""
    at = np.searchsorted(UNEVEN, parts.codes).clip(0, len(UNEVEN) - 1)
    if not np.array_equal(UNEVEN[at], parts.codes):
        raise ValueError("codes of this type are out of a table")
    return at.astype(np.uint8)


def _shift(parts: Parts) -> np.ndarray:
    if parts.m is None:
        raise ValueError("blocks of this type have a shift")
    return _raw(parts.m)


FORMATS: dict[str, Format] = {
    "Q4_0": Format(group=32, low=-8, high=7, split=_split_q4_0, join=_join_q4_0),
    "Q4_1": Format(group=32, low=0, high=15, split=_split_q4_1, join=_join_q4_1, shifted=True),
    "Q5_0": Format(group=32, low=-16, high=15, split=_split_q5_0, join=_join_q5_0),
    "Q5_1": Format(group=32, low=0, high=31, split=_split_q5_1, join=_join_q5_1, shifted=True),
    "Q8_0": Format(group=32, low=-127, high=127, split=_split_q8_0, join=_join_q8_0),
    "Q2_K": Format(
        group=16, low=0, high=3, split=_split_q2_k, join=_join_q2_k,
        scales=(0, 15), offsets=(-15, 0), shifted=True,
    ),
    "Q3_K": Format(
        group=16, low=-4, high=3, split=_split_q3_k, join=_join_q3_k, scales=(-32, 31)
    ),
    "Q4_K": Format(
        group=32, low=0, high=15, split=_split_q4_k, join=_join_q4_k,
        scales=(0, 63), offsets=(-63, 0), shifted=True,
    ),
    "Q5_K": Format(
        group=32, low=0, high=31, split=_split_q5_k, join=_join_q5_k,
        scales=(0, 63), offsets=(-63, 0), shifted=True,
    ),
    "Q6_K": Format(
        group=16, low=-32, high=31, split=_split_q6_k, join=_join_q6_k, scales=(-128, 127)
    ),
    "IQ4_NL": Format(
        group=32, low=-127, high=113, split=_split_iq4_nl, join=_join_iq4_nl, table=True
    ),
    "IQ4_XS": Format(
        group=32, low=-127, high=113, split=_split_iq4_xs, join=_join_iq4_xs,
        scales=(-32, 31), table=True,
    ),
}  # fmt: skip
