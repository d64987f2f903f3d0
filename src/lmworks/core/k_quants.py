"""ggml's block formats with scales that are quantised themselves, back to float32.

A super-block of 256 numbers holds one or two float16 and, for each 16 or 32 of its numbers, a small
whole number that scales them (and another that shifts them). With d, m the floats, s, o the small
numbers and q the code of a number:

| type | bytes per 256 | value | q | numbers per s |
|---|---|---|---|---|
| Q2_K | 84 | d s q - m o | 2 bits | 16 |
| Q3_K | 110 | d (s - 32) (q - 4) | 3 bits | 16 |
| Q4_K | 144 | d s q - m o | 4 bits | 32 |
| Q5_K | 176 | d s q - m o | 5 bits | 32 |
| Q6_K | 210 | d s (q - 32) | 6 bits | 16 |
| IQ4_XS | 136 | d (s - 32) table[q] | 4 bits | 32 |

Q5_0, Q5_1 and IQ4_NL are like Q4_0 and Q4_1, with a fifth bit apart or a table of values. Source:
the reference code of ggml (ggml-quants); `gguf` of Python is the oracle, equal to the bit.
"""

from __future__ import annotations

import numpy as np

# The values of the 4 bits of IQ4_NL and IQ4_XS: closer to each other around zero.
_UNEVEN = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)


def _f16(raw: np.ndarray) -> np.ndarray:
    return raw.copy().view(np.float16).astype(np.float32)  # (N, 2) uint8 -> (N, 1)


def _bits(raw: np.ndarray, width: int) -> np.ndarray:
    """(..., bytes) -> (..., 8 / width, bytes): the lowest `width` bits of all bytes, the next."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return (raw[..., None, :] >> shifts) & np.uint8((1 << width) - 1)


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """(N, 16) -> (N, 32): the low halves of all bytes, then the high ones."""
    return _bits(raw, 4).reshape(len(raw), -1)


def _fifth_bits(raw: np.ndarray) -> np.ndarray:
    """(N, 4) -> (N, 32) of 0 or 16: bit i belongs to number i."""
    return np.unpackbits(raw, axis=1, bitorder="little") << np.uint8(4)


def decode_q5_0(raw: np.ndarray) -> np.ndarray:
    """(N, 22) bytes -> (N, 32) float32."""
    codes = _nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6])
    return _f16(raw[:, :2]) * (codes.astype(np.float32) - 16)


def decode_q5_1(raw: np.ndarray) -> np.ndarray:
    """(N, 24) bytes -> (N, 32) float32."""
    codes = _nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8])
    return _f16(raw[:, :2]) * codes.astype(np.float32) + _f16(raw[:, 2:4])


def decode_iq4_nl(raw: np.ndarray) -> np.ndarray:
    """(N, 18) bytes -> (N, 32) float32."""
    return _f16(raw[:, :2]) * _UNEVEN[_nibbles(raw[:, 2:])]


def decode_q2_k(raw: np.ndarray) -> np.ndarray:
    """(N, 84) bytes -> (N, 256) float32."""
    scales, codes = raw[:, :16], _bits(raw[:, 16:80].reshape(-1, 2, 32), 2)
    return _shifted(codes, scales & 15, scales >> 4, _f16(raw[:, 80:82]), _f16(raw[:, 82:]))


def decode_q3_k(raw: np.ndarray) -> np.ndarray:
    """(N, 110) bytes -> (N, 256) float32."""
    high = _bits(raw[:, :32], 1).reshape(len(raw), 256)
    low = _bits(raw[:, 32:96].reshape(-1, 2, 32), 2).reshape(len(raw), 256)
    codes = (low | high << np.uint8(2)).astype(np.float32) - 4
    packed = raw[:, 96:108]
    scales = _bits(packed[:, :8], 4).reshape(-1, 16) | _high_bits(packed[:, 8:])
    return _scaled(codes, scales.astype(np.float32) - 32, _f16(raw[:, 108:]))


def _high_bits(raw: np.ndarray) -> np.ndarray:
    """(N, 4) -> (N, 16): two bits each, in the places of the fifth and sixth."""
    return _bits(raw, 2).reshape(len(raw), 16) << np.uint8(4)


def decode_q4_k(raw: np.ndarray) -> np.ndarray:
    """(N, 144) bytes -> (N, 256) float32."""
    scales, offsets = _scales_and_offsets(raw[:, 4:16])
    codes = _bits(raw[:, 16:].reshape(-1, 4, 32), 4)
    return _shifted(codes, scales, offsets, _f16(raw[:, :2]), _f16(raw[:, 2:4]))


def decode_q5_k(raw: np.ndarray) -> np.ndarray:
    """(N, 176) bytes -> (N, 256) float32."""
    scales, offsets = _scales_and_offsets(raw[:, 4:16])
    low = _bits(raw[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    codes = low | _bits(raw[:, 16:48], 1) << np.uint8(4)
    return _shifted(codes, scales, offsets, _f16(raw[:, :2]), _f16(raw[:, 2:4]))


def _scales_and_offsets(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 12) -> twice (N, 8), 6 bits each.

    Four bytes hold the first four scales and, in their upper bits, the upper bits of the other
    four; four bytes the offsets likewise; the last four the lower bits of the others.
    """
    scales, offsets, rest = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    others = (rest & 15) | (scales >> 6) << np.uint8(4), rest >> 4 | (offsets >> 6) << np.uint8(4)
    return (
        np.concatenate([scales & 63, others[0]], axis=1),
        np.concatenate([offsets & 63, others[1]], axis=1),
    )


def decode_q6_k(raw: np.ndarray) -> np.ndarray:
    """(N, 210) bytes -> (N, 256) float32."""
    low = _bits(raw[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 256)
    high = _bits(raw[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 256)
    codes = (low | high << np.uint8(4)).astype(np.float32) - 32
    scales = raw[:, 192:208].view(np.int8).astype(np.float32)
    return _scaled(codes, scales, _f16(raw[:, 208:]))


def decode_iq4_xs(raw: np.ndarray) -> np.ndarray:
    """(N, 136) bytes -> (N, 256) float32."""
    low = np.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = _bits(raw[:, 2:4].reshape(-1, 2, 1), 2).reshape(-1, 8) << np.uint8(4)
    codes = _UNEVEN[_bits(raw[:, 8:].reshape(-1, 8, 16), 4).reshape(-1, 256)]
    return _scaled(codes, (low | high).astype(np.float32) - 32, _f16(raw[:, :2]))


def _scaled(codes: np.ndarray, scales: np.ndarray, d: np.ndarray) -> np.ndarray:
    """(N, 256) float32 codes, (N, groups) scales, (N, 1) -> (N, 256)."""
    groups = codes.reshape(len(d), scales.shape[1], -1)
    values: np.ndarray = (d * scales)[:, :, None] * groups
    return values.reshape(len(d), 256)


def _shifted(
    codes: np.ndarray, scales: np.ndarray, offsets: np.ndarray, d: np.ndarray, m: np.ndarray
) -> np.ndarray:
    """(N, 256) codes in any shape, (N, groups) scales and offsets, (N, 1) twice -> (N, 256)."""
    values = _scaled(codes.reshape(len(d), 256).astype(np.float32), scales.astype(np.float32), d)
    shifts = np.repeat(m * offsets.astype(np.float32), 256 // offsets.shape[1], axis=1)
    return values - shifts
