"""ggml types that are only read: codebooks (IQ1 to IQ3), three values (TQ), floats of 4 bits.

A block of a codebook type holds places in a table of 4 or 8 numbers each (`codebooks.json`), signs,
and scales of groups. The values are equal to the bit to those of ggml's reference code, whose order
of products is kept (dequantize_row_* in ggml-quants, ggml of llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from importlib import resources

import numpy as np

_F = np.float32
_DELTA = _F(0.125)  # of the IQ1 types, added to or taken from their numbers
# Numbers of 4 bits with a 2-bit exponent, doubled so that all are whole.
_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.float32)
_POWERS = np.array([1, 3, 9, 27, 81], dtype=np.uint8)
# Seven bits say eight signs: the number of minus signs is even.
_SIGNS = np.array([i | (i.bit_count() & 1) << 7 for i in range(128)], dtype=np.uint8)


@functools.cache
def codebook(name: str) -> np.ndarray:
    """float32 (entries, width): the table of a type; IQ1_M has that of IQ1_S."""
    text = resources.files("lmworks.core").joinpath("codebooks.json").read_text("utf-8")
    table = json.loads(text)[name]
    raw = np.frombuffer(base64.b64decode("".join(table["places"])), dtype=np.uint8)
    bits: np.ndarray = np.unpackbits(raw, bitorder="little")
    bits = bits[: len(bits) // table["bits"] * table["bits"]].reshape(-1, table["bits"])
    places = bits @ (1 << np.arange(table["bits"]))
    places = places[: len(places) // table["width"] * table["width"]]
    return np.array(table["values"], dtype=np.float32)[places].reshape(-1, table["width"])


def _f16(raw: np.ndarray) -> np.ndarray:
    return raw.copy().view(np.float16).astype(np.float32)  # (N, 2) uint8 -> (N, 1)


def _u16(raw: np.ndarray) -> np.ndarray:
    return raw.copy().view("<u2")


def _u32(raw: np.ndarray) -> np.ndarray:
    return raw.copy().view("<u4")


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """(..., n) -> (..., n, 2): the low half of each byte, then the high one."""
    return np.stack([raw & 15, raw >> 4], axis=-1)


def _signed(signs: np.ndarray) -> np.ndarray:
    """(...,) uint8 -> (..., 8) float32: -1 where the bit is set."""
    bits = np.unpackbits(signs[..., None], axis=-1, bitorder="little")
    return _F(1) - _F(2) * bits.astype(np.float32)


def _packed_signs(words: np.ndarray) -> np.ndarray:
    """(..., groups) uint32 -> (..., groups, 4, 8): four times seven bits."""
    places = words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & np.uint32(127)
    return _signed(_SIGNS[places])


def _all(scales: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Scales (N, 8, 1 or 2 or 4) for 32 numbers each of (N, 8, 4, 8); -> (N, 256)."""
    each = np.repeat(scales, 4 // scales.shape[2], axis=2)
    values: np.ndarray = each[..., None] * numbers
    return values.reshape(len(scales), 256)


def _iq2_xxs(raw: np.ndarray) -> np.ndarray:
    groups = raw[:, 2:].reshape(-1, 8, 8)
    words = _u32(groups[:, :, 4:])[:, :, 0]
    scales = _f16(raw[:, :2]) * (_F(0.5) + (words >> 28).astype(np.float32)) * _F(0.25)
    return _all(scales[..., None], codebook("IQ2_XXS")[groups[:, :, :4]] * _packed_signs(words))


def _quarter_scales(raw: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(N, 8, 2) of IQ2_XS and IQ2_S."""
    small = _nibbles(scales).astype(np.float32)
    product: np.ndarray = _f16(raw[:, :2])[..., None] * (_F(0.5) + small) * _F(0.25)
    return product


def _iq2_xs(raw: np.ndarray) -> np.ndarray:
    places = _u16(raw[:, 2:66]).reshape(-1, 8, 4)
    numbers = codebook("IQ2_XS")[places & 511] * _signed(_SIGNS[places >> 9])
    return _all(_quarter_scales(raw, raw[:, 66:]), numbers)


def _iq2_s(raw: np.ndarray) -> np.ndarray:
    low, signs = (raw[:, at : at + 32].reshape(-1, 8, 4) for at in (2, 34))
    high = raw[:, 66:74, None] >> np.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)
    places = low | high.astype(np.uint16) << np.uint16(8)
    return _all(_quarter_scales(raw, raw[:, 74:]), codebook("IQ2_S")[places] * _signed(signs))


def _iq3_xxs(raw: np.ndarray) -> np.ndarray:
    places = raw[:, 2:66].reshape(-1, 8, 4, 2)
    words = _u32(raw[:, 66:])
    scales = _f16(raw[:, :2]) * (_F(0.5) + (words >> 28).astype(np.float32)) * _F(0.5)
    numbers = codebook("IQ3_XXS")[places].reshape(-1, 8, 4, 8)
    return _all(scales[..., None], numbers * _packed_signs(words))


def _iq3_s(raw: np.ndarray) -> np.ndarray:
    high = np.unpackbits(raw[:, 66:74, None], axis=2, bitorder="little")
    places = raw[:, 2:66].reshape(-1, 8, 8) | high.astype(np.uint16) << np.uint16(8)
    small = _nibbles(raw[:, 106:]).reshape(-1, 8).astype(np.float32)
    scales = _f16(raw[:, :2]) * (_F(1) + _F(2) * small)
    numbers = codebook("IQ3_S")[places].reshape(-1, 8, 4, 8)
    return _all(scales[..., None], numbers * _signed(raw[:, 74:106].reshape(-1, 8, 4)))


def _iq1_s(raw: np.ndarray) -> np.ndarray:
    words = _u16(raw[:, 34:])  # (N, 8)
    high = words[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & np.uint16(7)
    places = raw[:, 2:34].reshape(-1, 8, 4) | high << np.uint16(8)
    small = (words >> 12 & np.uint16(7)).astype(np.float32)
    scales = _f16(raw[:, :2]) * (_F(2) * small + _F(1))
    delta = np.where(words >> 15, -_DELTA, _DELTA)
    return _all(scales[..., None], codebook("IQ1_S")[places] + delta[..., None, None])


def _iq1_m(raw: np.ndarray) -> np.ndarray:
    words = _u16(raw[:, 48:])  # (N, 4): 4 bits of the scale on top of 12 of groups
    tops = (words >> 12) << np.arange(0, 16, 4, dtype=np.uint16)
    d = np.bitwise_or.reduce(tops, axis=1)[:, None].view(np.float16).astype(np.float32)
    small = words[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & np.uint16(7)
    scales = d * (_F(2) * small.reshape(-1, 16).astype(np.float32) + _F(1))
    high = _nibbles(raw[:, 32:48]).reshape(-1, 8, 4)
    places = raw[:, :32].reshape(-1, 8, 4) | (high & 7).astype(np.uint16) << np.uint16(8)
    delta = np.where(high >> 3, -_DELTA, _DELTA)
    return _all(scales.reshape(-1, 8, 2), codebook("IQ1_S")[places] + delta[..., None])


def _tq1_0(raw: np.ndarray) -> np.ndarray:
    parts = []
    for part, powers in ((raw[:, :32], 5), (raw[:, 32:48], 5), (raw[:, 48:52], 4)):
        turned = part[:, None] * _POWERS[:powers, None]  # the byte that is left, modulo 256
        parts.append((turned.astype(np.uint16) * 3 >> 8).reshape(len(raw), -1))
    values: np.ndarray = (np.hstack(parts).astype(np.float32) - _F(1)) * _f16(raw[:, 52:])
    return values


def _tq2_0(raw: np.ndarray) -> np.ndarray:
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    codes = raw[:, :64].reshape(-1, 2, 1, 32) >> shifts & np.uint8(3)
    values: np.ndarray = (codes.reshape(-1, 256).astype(np.float32) - _F(1)) * _f16(raw[:, 64:])
    return values


def _mxfp4(raw: np.ndarray) -> np.ndarray:
    exponents = raw[:, :1].astype(np.uint32)
    bits = np.where(exponents < 2, np.uint32(0x00200000) << exponents, (exponents - 1) << 23)
    codes = np.hstack([raw[:, 1:] & 15, raw[:, 1:] >> 4])
    values: np.ndarray = _E2M1[codes] * bits.astype(np.uint32).view(np.float32)
    return values


def _nvfp4(raw: np.ndarray) -> np.ndarray:
    scales = raw[:, :4]
    exponents, tail = (scales >> 3 & 15).astype(np.int32), (scales & 7).astype(np.float32)
    small = np.ldexp(tail, -9)
    d = np.where(exponents == 0, small, np.ldexp(_F(1) + tail / _F(8), exponents - 7)) * _F(0.5)
    d = np.where((scales == 0) | (scales == 0x7F), _F(0), d).astype(np.float32)
    halves = raw[:, 4:].reshape(-1, 4, 8)
    codes = np.concatenate([halves & 15, halves >> 4], axis=2)
    values: np.ndarray = _E2M1[codes] * d[..., None]
    return values.reshape(len(raw), 64)


def _q1_0(raw: np.ndarray) -> np.ndarray:
    bits, d = np.unpackbits(raw[:, 2:], axis=1, bitorder="little"), _f16(raw[:, :2])
    return np.where(bits, d, -d)


def _q2_0(raw: np.ndarray) -> np.ndarray:
    codes = raw[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)
    values: np.ndarray = (codes.reshape(-1, 64).astype(np.float32) - _F(1)) * _f16(raw[:, :2])
    return values


def _q8_k(raw: np.ndarray) -> np.ndarray:
    values: np.ndarray = raw[:, 4:260].view(np.int8) * raw[:, :4].copy().view("<f4")
    return values


def _q8_1(raw: np.ndarray) -> np.ndarray:
    values: np.ndarray = raw[:, 4:].view(np.int8) * _f16(raw[:, :2])
    return values


# (N, bytes of a block) uint8 -> (N, numbers of a block) float32.
DECODERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "IQ1_S": _iq1_s, "IQ1_M": _iq1_m,
    "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s,
    "TQ1_0": _tq1_0, "TQ2_0": _tq2_0,
    "MXFP4": _mxfp4, "NVFP4": _nvfp4,
    "Q1_0": _q1_0, "Q2_0": _q2_0,
    "Q8_1": _q8_1, "Q8_K": _q8_k,
}  # fmt: skip
