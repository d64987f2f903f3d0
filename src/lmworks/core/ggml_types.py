"""The types of ggml tensors: how many numbers a block holds, in how many bytes, and their values.

Quantised types stand in `block_parts` and, where they are only read, in
`codebook_blocks`; how numbers become blocks in `quantizers`. Source: the GGUF
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
    decode: _Codec


def _decode_f16(raw: np.ndarray) -> np.ndarray:
    return raw.copy().view(np.float16).astype(np.float32)  # (N, 2) uint8 -> (N, 1)


def _decode_bf16(raw: np.ndarray) -> np.ndarray:
    return (raw.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _quantized(name: str, number: int, size: int, num_bytes: int) -> BlockType:
    split = FORMATS[name].split
    return BlockType(number, size, num_bytes, lambda raw: split(raw).values())


def _only_read(name: str, number: int, size: int, num_bytes: int) -> BlockType:
    def decode(raw: np.ndarray) -> np.ndarray:
        from lmworks.core.codebook_blocks import DECODERS  # which few files need

        return DECODERS[name](raw)

    return BlockType(number, size, num_bytes, decode)


def _plain(number: int, dtype: str) -> BlockType:
    return BlockType(
        number, 1, np.dtype(dtype).itemsize, lambda raw: raw.copy().view(dtype).astype(np.float32)
    )


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
    "Q1_0": _only_read("Q1_0", 41, 128, 18),
    "Q2_0": _only_read("Q2_0", 42, 64, 18),
    "IQ1_S": _only_read("IQ1_S", 19, 256, 50),
    "IQ1_M": _only_read("IQ1_M", 29, 256, 56),
    "IQ2_XXS": _only_read("IQ2_XXS", 16, 256, 66),
    "IQ2_XS": _only_read("IQ2_XS", 17, 256, 74),
    "IQ2_S": _only_read("IQ2_S", 22, 256, 82),
    "IQ3_XXS": _only_read("IQ3_XXS", 18, 256, 98),
    "IQ3_S": _only_read("IQ3_S", 21, 256, 110),
    "TQ1_0": _only_read("TQ1_0", 34, 256, 54),
    "TQ2_0": _only_read("TQ2_0", 35, 256, 66),
    "MXFP4": _only_read("MXFP4", 39, BLOCK, 17),
    "NVFP4": _only_read("NVFP4", 40, 64, 36),
    "Q8_1": _only_read("Q8_1", 9, BLOCK, 36),
    "Q8_K": _only_read("Q8_K", 15, 256, 292),
    "I8": _plain(24, "i1"),
    "I16": _plain(25, "<i2"),
    "I32": _plain(26, "<i4"),
    "I64": _plain(27, "<i8"),
    "F64": _plain(28, "<f8"),
}
NAMES = {block.number: name for name, block in TYPES.items()}

# llama.cpp's numbers for "mostly of this type", shown by its tools.
FILE_TYPES = {
    **{"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9},
    **{"Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "IQ4_NL": 25, "IQ4_XS": 30, "Q5_K": 17, "Q6_K": 18},
}
# For rows that don't divide into blocks of 256, as llama.cpp has it.
INSTEAD = {
    **{"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL"},
    **{"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"},
}
FLOATS = ("F32", "F16", "BF16")


def encode_floats(values: np.ndarray, kind: str) -> np.ndarray:
    """float32 (..., n) -> uint8 (..., bytes), for a type of FLOATS; to nearest, halves to even.

    What a type can't hold becomes infinite.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if kind == "BF16":
        bits = values.view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        # Adding could carry a NaN over to zero; one with its highest bit set stays one.
        plain = np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype(np.uint16)
    elif kind == "F16":
        with np.errstate(over="ignore"):
            plain = values.astype(np.float16)
    else:
        plain = values
    return np.ascontiguousarray(plain).view(np.uint8)
