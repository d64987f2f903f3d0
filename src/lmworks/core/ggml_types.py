"""The types of ggml tensors: how many numbers a block holds, in how many bytes, and their values.

Quantised types stand in `block_parts`, how numbers become blocks in `quantizers`. Source: the GGUF
specification and the reference code of ggml (ggml-quants).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from lmworks.core.block_parts import FORMATS

BLOCK = 32
SUPER_BLOCK = 256  # of the K types

_Codec = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class BlockType:
    """One ggml type: `size` numbers in `num_bytes` bytes; `decode` takes (N, num_bytes) uint8."""

    number: int  # in the file
    size: int
    num_bytes: int
    decode: _Codec | None = None  # None: known by name and size, but not read


def _decode_f16(raw: np.ndarray) -> np.ndarray:
    return raw.copy().view(np.float16).astype(np.float32)  # (N, 2) uint8 -> (N, 1)


def _decode_bf16(raw: np.ndarray) -> np.ndarray:
    return (raw.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _quantized(name: str, number: int, size: int, num_bytes: int) -> BlockType:
    split = FORMATS[name].split
    return BlockType(number, size, num_bytes, lambda raw: split(raw).values())


TYPES: dict[str, BlockType] = {
    "F32": BlockType(0, 1, 4, lambda raw: raw.copy().view(np.float32)),
    "F16": BlockType(1, 1, 2, _decode_f16),
    "BF16": BlockType(30, 1, 2, _decode_bf16),
    "Q8_0": _quantized("Q8_0", 8, BLOCK, 34),
    "Q4_0": _quantized("Q4_0", 2, BLOCK, 18),
    "Q4_1": _quantized("Q4_1", 3, BLOCK, 20),
    "Q5_0": _quantized("Q5_0", 6, BLOCK, 22),
    "Q5_1": _quantized("Q5_1", 7, BLOCK, 24),
    "Q2_K": _quantized("Q2_K", 10, 256, 84),
    "Q3_K": _quantized("Q3_K", 11, 256, 110),
    "Q4_K": _quantized("Q4_K", 12, 256, 144),
    "Q5_K": _quantized("Q5_K", 13, 256, 176),
    "Q6_K": _quantized("Q6_K", 14, 256, 210),
    "IQ4_NL": _quantized("IQ4_NL", 20, BLOCK, 18),
    "IQ4_XS": _quantized("IQ4_XS", 23, 256, 136),
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
