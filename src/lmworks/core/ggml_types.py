"""The block formats of ggml tensors: how numbers lie in a file, and back to float32.

A quantised row is cut into blocks of 32 numbers that share a scale (and an offset):

| type | bytes per 32 | value |
|---|---|---|
| Q8_0 | 2 + 32 | d * q, q in [-128, 127] |
| Q4_0 | 2 + 16 | d * (q - 8), q in [0, 15] |
| Q4_1 | 2 + 2 + 16 | d * q + m |

d and m are float16. In the 4-bit types byte j holds number j in its low half and number j + 16 in
its high half. Types of other widths stand in `k_quants`. Source: the GGUF specification and the
reference code of ggml (ggml-quants).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from lmworks.core import k_quants

BLOCK = 32

_Codec = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class BlockType:
    """One ggml type: `size` numbers in `num_bytes` bytes; `decode` takes (N, num_bytes) uint8."""

    number: int  # in the file
    size: int
    num_bytes: int
    decode: _Codec | None = None  # None: known by name and size, but not read


def _f16(raw: np.ndarray) -> np.ndarray:
    return raw.copy().view(np.float16).astype(np.float32)  # (N, 2) uint8 -> (N, 1)


def _nibbles(raw: np.ndarray) -> np.ndarray:
    return np.concatenate([raw & 15, raw >> 4], axis=1)  # (N, 16) -> (N, 32) in [0, 15]


def decode_q8_0(raw: np.ndarray) -> np.ndarray:
    """(N, 34) bytes -> (N, 32) float32."""
    return _f16(raw[:, :2]) * raw[:, 2:].view(np.int8).astype(np.float32)


def decode_q4_0(raw: np.ndarray) -> np.ndarray:
    """(N, 18) bytes -> (N, 32) float32."""
    return _f16(raw[:, :2]) * (_nibbles(raw[:, 2:]).astype(np.float32) - 8)


def decode_q4_1(raw: np.ndarray) -> np.ndarray:
    """(N, 20) bytes -> (N, 32) float32."""
    return _f16(raw[:, :2]) * _nibbles(raw[:, 4:]).astype(np.float32) + _f16(raw[:, 2:4])


def _decode_bf16(raw: np.ndarray) -> np.ndarray:
    return (raw.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)


TYPES: dict[str, BlockType] = {
    "F32": BlockType(0, 1, 4, lambda raw: raw.copy().view(np.float32)),
    "F16": BlockType(1, 1, 2, _f16),
    "BF16": BlockType(30, 1, 2, _decode_bf16),
    "Q8_0": BlockType(8, BLOCK, 34, decode_q8_0),
    "Q4_0": BlockType(2, BLOCK, 18, decode_q4_0),
    "Q4_1": BlockType(3, BLOCK, 20, decode_q4_1),
    "Q5_0": BlockType(6, BLOCK, 22, k_quants.decode_q5_0),
    "Q5_1": BlockType(7, BLOCK, 24, k_quants.decode_q5_1),
    "Q2_K": BlockType(10, 256, 84, k_quants.decode_q2_k),
    "Q3_K": BlockType(11, 256, 110, k_quants.decode_q3_k),
    "Q4_K": BlockType(12, 256, 144, k_quants.decode_q4_k),
    "Q5_K": BlockType(13, 256, 176, k_quants.decode_q5_k),
    "Q6_K": BlockType(14, 256, 210, k_quants.decode_q6_k),
    "IQ4_NL": BlockType(20, BLOCK, 18, k_quants.decode_iq4_nl),
    "IQ4_XS": BlockType(23, 256, 136, k_quants.decode_iq4_xs),
    # Sizes only, so that a file which also holds these is walked and the tensor named.
    "Q8_1": BlockType(9, BLOCK, 40),
    "Q8_K": BlockType(15, 256, 292),
    "IQ2_XXS": BlockType(16, 256, 66),
    "IQ2_XS": BlockType(17, 256, 74),
    "IQ3_XXS": BlockType(18, 256, 98),
    "IQ1_S": BlockType(19, 256, 50),
    "IQ3_S": BlockType(21, 256, 110),
    "IQ2_S": BlockType(22, 256, 82),
    "I8": BlockType(24, 1, 1),
    "I16": BlockType(25, 1, 2),
    "I32": BlockType(26, 1, 4),
    "I64": BlockType(27, 1, 8),
    "F64": BlockType(28, 1, 8),
    "IQ1_M": BlockType(29, 256, 56),
    "TQ1_0": BlockType(34, 256, 54),
    "TQ2_0": BlockType(35, 256, 66),
    "MXFP4": BlockType(39, BLOCK, 17),
}
NAMES = {block.number: name for name, block in TYPES.items()}


def quantize_q8_0(array: np.ndarray) -> np.ndarray:
    """float32 (rows, columns), columns a multiple of 32 -> uint8 (rows, columns / 32 * 34).

    Rounds half away from zero and stores the scale as float16, as ggml's reference code does.
    """
    rows, columns = array.shape
    blocks = np.ascontiguousarray(array, dtype=np.float32).reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    inverse[np.isinf(inverse)] = 0  # all zero, or so small that the float16 scale is zero
    scaled = blocks * inverse
    codes = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    packed = np.concatenate([scale.astype(np.float16).view(np.uint8), codes.view(np.uint8)], axis=1)
    return packed.reshape(rows, columns // BLOCK * 34)
