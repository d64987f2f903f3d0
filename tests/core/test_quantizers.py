"""Quantisers: the bytes of the reference code, and no number that spoils a block in silence."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.block_parts import FORMATS
from lmworks.core.errors import UserError
from lmworks.core.ggml_types import TYPES
from lmworks.core.gguf import GGUFTensor, dequantize
from lmworks.core.k_quantizers import half
from lmworks.core.quantizers import QUANTIZERS, quantize

reference = pytest.importorskip("gguf")
SIMPLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")

# SHA-256 of what ggml's C code (ggml_quantize_chunk of llama.cpp in llama-cpp-python 0.3.36, built
# without fused products) makes of `hard_rows()`, and with `importances()`.
IN_C = {
    "Q2_K": "0908f10e61ed26196d703687eaa83ddf8c63d80d6d438630c80239a354aa7bff",
    "Q3_K": "c18313ccdba85f432b62938ff36e24932886c08b7015d09bc453af124d2f9185",
    "Q4_K": "32ea8da14a167488dc6c4346a79f689c1f7ef74980578738eb2840207632c770",
    "Q5_K": "8a8875d90a82fc73ac9bb99a5e88275bc6df72d5dbb99936dd32dc3763b035c1",
    "Q6_K": "ab0e458bb1bd3e11eaaef72bde41611a778f1ba11e676a5d25a8a14039d8ea7b",
    "IQ4_NL": "1b29fb5cb12794a32b572fa25cd74130a839b1cf3be938590b222562542e7049",
    "IQ4_XS": "974d37d4d63f72ea4f3302bddf0d844363dd262e48513cf1ac20241e848164b6",
}
WEIGHED_IN_C = {
    "Q4_0": "b89f42c0923f7d12fb08584668a1fc3a538b6592d378b45984aaf5e74a3fa74b",
    "Q4_1": "59f5566fa27a9c56a28817ab3a4245e8432fdfe6af9e99daafa0932cdf537874",
    "Q5_0": "38813f8ed568b11a6c1cf73e4b75ed23007072f0be37eff829c24d67ed3baa73",
    "Q5_1": "cc3dbf9eac5289ddfeabaa99a4041ec071b5b1c29f3816a15d57f59f13280b18",
    "Q2_K": "27600af0d53af4767e05c01dfdb4b85795f5ec7f56ac1f658413cb9d502bec19",
    "Q3_K": "502e72b2044ccc4310f344cd7492fd589b765a157582e052c4536dec5f4291f0",
    "Q4_K": "7b133abe1db61b8db7602091674805de0ee65b341173d212823013251881c745",
    "Q5_K": "751216e5bd9dd71d3dc3cda6069983056f22dd2e2653a2940f5da4b061187a59",
    "Q6_K": "f95f89b96314974515c8f6d529162e1c8148d7a42feaa76efd2bc0cc07e393b5",
    "IQ4_NL": "c9585d8e92b84d6edc7352e4c5a4a4adb22566c835566649a3d11098dd4ae35d",
    "IQ4_XS": "2e533b70b9d51241b16bfdf8e7f431eee052189f21cd9d2d9329bcebac1ecde0",
}


def hard_rows(seed: int = 0) -> np.ndarray:
    """(64, 1024): normal, heavy-tailed, one-sided, constant, tiny, zero, whole numbers."""
    # Integers over a power of two: the same on every machine, whatever its random functions.
    whole = np.random.default_rng(seed).integers(-(1 << 12), 1 << 12, (64, 1024))
    rows = (whole / (1 << 16)).astype(np.float32)
    rows[0, :256] = 0
    rows[1], rows[2] = np.abs(rows[1]), -np.abs(rows[2])
    rows[3] = np.round(rows[3] * 64)
    rows[4] = np.float32(2.0**-70)
    rows[5] = rows[5] ** 3 * 4096
    rows[6, ::17] *= 1024
    rows[7, 16:32] = np.float32(2.0**-60)
    return rows


def importances(seed: int = 1) -> np.ndarray:
    """(1024,), some columns of none, some of far more than the others."""
    whole = np.random.default_rng(seed).integers(0, 1 << 12, 1024)
    values = (whole / (1 << 10)).astype(np.float32)
    values[::97] *= 1024
    values[5:9] = 0
    values[512:544] = 0
    return values


def tensor(kind: str, raw: np.ndarray, columns: int) -> GGUFTensor:
    return GGUFTensor(name="t", shape=(len(raw), columns), type=kind, data=raw.reshape(-1))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(SIMPLE),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-30, 1e-7, 1e-3, 1.0, 300.0, 10000.0]),
)
def test_the_same_bytes_as_gguf(kind: str, seed: int, size: float) -> None:
    array = np.random.default_rng(seed).standard_normal((3, 64)).astype(np.float32)
    array *= np.float32(size)
    array[0, :32] = 0
    array[1, :32] = np.round(array[1, :32])  # ties
    with np.errstate(all="ignore"):
        expected = reference.quants.quantize(array, reference.GGMLQuantizationType[kind])
    assert quantize(array, kind).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", IN_C)
def test_the_same_bytes_as_c(kind: str) -> None:
    assert hashlib.sha256(quantize(hard_rows(), kind).tobytes()).hexdigest() == IN_C[kind]


@pytest.mark.parametrize("kind", WEIGHED_IN_C)
def test_the_same_bytes_as_c_with_importance(kind: str) -> None:
    weighed = quantize(hard_rows(), kind, importance=importances())
    assert hashlib.sha256(weighed.tobytes()).hexdigest() == WEIGHED_IN_C[kind]


@pytest.mark.parametrize("kind", WEIGHED_IN_C)
def test_columns_that_matter_are_nearer(kind: str) -> None:
    array = np.random.default_rng(0).standard_normal((32, 512)).astype(np.float32)
    importance = np.where(np.arange(512) % 4 == 0, 100, 1).astype(np.float32)

    def error(raw: np.ndarray) -> float:
        off = dequantize(tensor(kind, raw, 512)) - array
        return float((off * off * importance).sum())

    assert error(quantize(array, kind, importance=importance)) < 0.95 * error(quantize(array, kind))


@pytest.mark.parametrize("bad", [np.ones(255), np.full(256, -1.0), np.full(256, np.nan)])
def test_importance_that_can_not_be_any_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"blk\.0: importance"):
        quantize(np.ones((2, 256), np.float32), "Q4_0", importance=bad, name="blk.0")


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([k for k, f in FORMATS.items() if f.join]), st.randoms())
def test_what_is_taken_apart_can_be_put_together(kind: str, source: object) -> None:
    raw = np.frombuffer(source.randbytes(5 * TYPES[kind].num_bytes), np.uint8)  # type: ignore[attr-defined]
    raw = raw.reshape(5, -1)
    form = FORMATS[kind]
    assert form.join is not None
    assert form.join(form.split(raw)).tobytes() == raw.tobytes()


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_step_is_all_that_is_lost(kind: str) -> None:
    array = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    again = dequantize(tensor(kind, quantize(array, kind), 512))
    bits = int(kind.strip("IQ")[0])
    assert np.abs(again - array).mean() < 1.6 * 2.0**-bits  # the ends are some 4.5 apart
    assert np.abs(again - array).max() < 6 * 2.0**-bits


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_by_name(kind: str, bad: float) -> None:
    array = np.zeros((2, 256), np.float32)
    array[1, 3] = bad
    with pytest.raises(UserError, match=r"blk\.0 holds NaN or infinity"):
        quantize(array, kind, name="blk.0")


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("size", [5e8, 3e38])
def test_what_is_too_large_is_refused(kind: str, size: float) -> None:
    array = np.zeros((1, 256), np.float32)
    array[0, 0], array[0, 1] = -size, size
    with pytest.raises(UserError, match=f"too large for the float16 scales of {kind}"):
        quantize(array, kind)


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("tiny", [0.0, 1e-45, 1e-40, 1e-20])
def test_next_to_nothing_is_nothing(kind: str, tiny: float) -> None:
    array = np.full((1, 256), tiny, np.float32)
    assert np.abs(dequantize(tensor(kind, quantize(array, kind), 256))).max() <= 1e-7


def test_rows_that_do_not_divide_name_the_types_that_fit() -> None:
    with pytest.raises(
        UserError, match="rows of 96 do not divide into Q4_K blocks of 256: take Q8"
    ):
        quantize(np.zeros((1, 96), np.float32), "Q4_K")
    with pytest.raises(UserError, match="take F16"):
        quantize(np.zeros((1, 33), np.float32), "Q8_0")


@pytest.mark.parametrize("kind", ["IQ2_XS", "TQ1_0", "F32"])
def test_a_type_that_is_only_read_is_named(kind: str) -> None:
    with pytest.raises(UserError, match=f"w: {kind} can't be written: take one of Q8_0"):
        quantize(np.zeros((1, 256), np.float32), kind, name="w")


def test_arithmetic_is_exact_whoever_compiles_it_first() -> None:
    from lmworks.core import k_quantizers, uneven_blocks

    found = [
        f for m in (k_quantizers, uneven_blocks) for f in vars(m).values() if hasattr(f, "py_func")
    ]
    assert len(found) > 12 and not any(f.targetoptions["fastmath"] for f in found)
    assert all("fastmath" in f.targetoptions for f in found)  # else a caller's is taken over


def test_a_half_is_that_of_numpy() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[1:] + halves[:-1]) / 2
    for values in (halves[::31], between[::29], between[::37] * np.float32(1.0001), -between[::41]):
        ours = np.array([half(value) for value in values], dtype=np.float32)
        assert np.array_equal(ours, values.astype(np.float16).astype(np.float32))
    assert half(np.float32(65520)) == np.inf and half(np.float32(-1e30)) == -np.inf
