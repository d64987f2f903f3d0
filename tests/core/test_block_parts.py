"""Block formats with quantised scales: the same floats as the `gguf` package gives, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.block_parts import FORMATS
from lmworks.core.ggml_types import TYPES
from lmworks.core.gguf import GGUFTensor, dequantize

gguf = pytest.importorskip("gguf")

# name: where the float16 scales of a block lie
SCALES = {
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "IQ4_NL": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_XS": (0,),
}


def drawn(kind: str, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Random bytes for (rows, blocks), with float16 scales that are ordinary numbers."""
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, (rows * blocks, TYPES[kind].num_bytes), dtype=np.uint8)
    for at in SCALES[kind]:
        floats = generator.normal(size=(len(raw), 1)).astype(np.float16)
        raw[:, at : at + 2] = floats.view(np.uint8)
    return raw.reshape(rows, -1)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(SCALES)), st.integers(1, 5), st.integers(1, 4), st.integers(0, 999))
def test_the_same_floats_as_gguf(kind: str, rows: int, blocks: int, seed: int) -> None:
    raw = drawn(kind, rows, blocks, seed)
    shape = (rows, blocks * TYPES[kind].size)
    ours = dequantize(GGUFTensor(name="t", shape=shape, type=kind, data=raw.reshape(-1)))
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape == shape
    assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def test_every_type_of_the_table_was_compared() -> None:
    assert set(FORMATS) == {"Q8_0", "Q4_0", "Q4_1"} | set(SCALES)  # those by test_gguf
