"""Types that are only read: the same floats as ggml's C code and the `gguf` package give."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.block_parts import FORMATS
from lmworks.core.codebook_blocks import DECODERS, codebook
from lmworks.core.ggml_types import TYPES
from lmworks.core.gguf import GGUFTensor, dequantize

# SHA-256 of the float32 that dequantize_row_* of ggml (llama-cpp-python 0.3.36) makes of
# `any_blocks()`, NaN as 0.
IN_C = {
    "IQ1_S": "3216edc796f6fc356ada352f1033b595224a40d3fc83aea501077e6b94665bb3",
    "IQ1_M": "46e1b2510522e3ec8b445905c501b83aa4f7ce5b31ff0241c1ee53047ca58179",
    "IQ2_XXS": "545b85cbb03c9b940b33369e4bb3a16f968278e746a4a10a2ae0d2b3139b5403",
    "IQ2_XS": "3c335042bcc053dc0b1a96e7d866f7bf7c022e6e3370d281a21ab40bcc353d65",
    "IQ2_S": "24877f51f560804fe3b64751df85c6d3e1fcde1b3194d28f0ff42e82378e26d4",
    "IQ3_XXS": "54a8d8c02f32e2fdddcec77f6bfb0d6b5708c0dffd2433b3f9edead197b9b9c4",
    "IQ3_S": "c40511c9395c36271a03f2f883ccac0b8c25d438db8a36a392b8eaa3da8ef07d",
    "TQ1_0": "2dab993b55aaaaa587982d8aa8de1770095e7855ab7f28ddd7eae8cdd6f48fe5",
    "TQ2_0": "372b75d188246f02955d1364841b6ba6419e96029e4eaca3da07e6c3358f15c5",
    "MXFP4": "604fd6f99684071475fab2e40068b0196028325cffe135cb645ac7b1d50fa2f5",
    "NVFP4": "fdd93de7053afff6ca1a23291561b76a88dc76339cb5e52245fecbc22aca3d41",
    "Q1_0": "00edfdab76f41c2007f818dcf4e6509137f55383994393c636d6fffdefcbf422",
    "Q2_0": "c3c5d3207ddb5d5e8e6bf591a2096fad4723965351d56b859ef5dbee64366b53",
    "Q8_K": "f64da94ea85c4c5eb6f9c04a2f20f5f18810c31d0bf7b77d5c9b5762c21afaaa",
}


def any_blocks(kind: str) -> np.ndarray:
    """(512, bytes of a block)."""
    whole = np.random.default_rng(TYPES[kind].number).integers(0, 256, (512, TYPES[kind].num_bytes))
    return whole.astype(np.uint8)


def read(kind: str, raw: np.ndarray) -> np.ndarray:
    shape = (len(raw), TYPES[kind].size)
    return dequantize(GGUFTensor(name="t", shape=shape, type=kind, data=raw.reshape(-1)))


@pytest.mark.parametrize("kind", IN_C)
def test_the_same_floats_as_c(kind: str) -> None:
    values = read(kind, any_blocks(kind))
    values[np.isnan(values)] = 0
    assert values.dtype == np.float32
    assert hashlib.sha256(values.tobytes()).hexdigest() == IN_C[kind]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(set(DECODERS) - {"Q1_0", "Q2_0", "Q8_1", "Q8_K"})),
    st.integers(0, 2**32 - 1),
)
def test_the_same_floats_as_gguf(kind: str, seed: int) -> None:
    gguf = pytest.importorskip("gguf")
    raw = np.random.default_rng(seed).integers(0, 256, (5, TYPES[kind].num_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(read(kind, raw), theirs, equal_nan=True)


def test_blocks_of_products_are_read() -> None:
    """Q8_1, which no file holds and C does not read back: a scale, a sum and 32 codes."""
    raw = np.zeros((1, 36), np.uint8)
    raw[0, :2] = np.array([0.5], np.float16).view(np.uint8)
    raw[0, 4:] = np.arange(-16, 16, dtype=np.int8).view(np.uint8)
    assert np.array_equal(read("Q8_1", raw)[0], np.arange(-16, 16) / 2)


@pytest.mark.parametrize("kind", ["I8", "I16", "I32", "I64", "F64"])
def test_plain_numbers_are_read(kind: str) -> None:
    numbers = np.array([[-3, 0, 100]], dtype=kind.lower().replace("f", "float").replace("i", "int"))
    tensor = GGUFTensor(name="t", shape=(1, 3), type=kind, data=numbers.view(np.uint8).reshape(-1))
    assert dequantize(tensor).tolist() == [[-3, 0, 100]]


def test_every_type_is_compared_with_c_or_gguf() -> None:
    elsewhere = {"F32", "F16", "BF16", "I8", "I16", "I32", "I64", "F64", "Q8_1"}
    assert set(TYPES) == elsewhere | set(FORMATS) | set(IN_C)
    assert set(DECODERS) == set(IN_C) | {"Q8_1"}


def test_codebooks_are_whole() -> None:
    sizes = {"IQ2_XXS": 256, "IQ2_XS": 512, "IQ2_S": 1024, "IQ3_XXS": 256, "IQ3_S": 512}
    for name, entries in {**sizes, "IQ1_S": 2048}.items():
        table = codebook(name)
        assert len(np.unique(table, axis=0)) == len(table) == entries


def test_reading_takes_little_more_than_the_answer() -> None:
    raw = np.zeros((1 << 14, TYPES["IQ2_XS"].num_bytes), np.uint8)
    read("IQ2_XS", raw[:1])
    tracemalloc.start()
    values = read("IQ2_XS", raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values.nbytes + (12 << 20)
