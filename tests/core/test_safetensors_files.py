"""safetensors files in pieces: what others read, and headers that lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lmworks.core.errors import UserError
from lmworks.core.safetensors_files import NewTensor, read_header, write_safetensors


def _file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_written_in_pieces_and_read_by_safetensors(tmp_path: Path) -> None:
    one, two = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(5, dtype=np.int64)
    pieces = [one[:1].tobytes(), memoryview(one[1:])]
    write_safetensors(
        tmp_path / "x",
        [
            NewTensor(name="ä", dtype="F32", shape=(3, 4), pieces=pieces),
            NewTensor(name="b", dtype="I64", shape=(5,), pieces=[two.tobytes()]),
        ],
    )
    found = load_file(tmp_path / "x")
    assert np.array_equal(found["ä"], one)
    assert np.array_equal(found["b"], two)
    stored = read_header(tmp_path / "x")["b"]
    data = (tmp_path / "x").read_bytes()[stored.start : stored.start + stored.num_bytes]
    assert np.array_equal(np.frombuffer(data, np.int64), two)


def test_read_as_safetensors_writes(tmp_path: Path) -> None:
    save_file({"b": np.ones((2, 3), np.float16), "a": np.zeros((), np.uint8)}, tmp_path / "x")
    found = read_header(tmp_path / "x")
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        "b": ("F16", (2, 3)),
        "a": ("U8", ()),
    }


def test_tensors_without_numbers_are_in_nobodys_way(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}
    found = read_header(_file(tmp_path / "x", {"a": GOOD, "b": empty}, bytes(8)))
    assert {name: t.num_bytes for name, t in found.items()} == {"a": 8, "b": 0}
    pieces = [memoryview(np.empty((0, 4), np.float32))]
    write_safetensors(
        tmp_path / "y", [NewTensor(name="b", dtype="F32", shape=(0, 4), pieces=pieces)]
    )
    assert load_file(tmp_path / "y")["b"].shape == (0, 4)


def test_a_wrong_number_of_bytes_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 bytes of 4"):
        write_safetensors(
            tmp_path / "x", [NewTensor(name="a", dtype="F32", shape=(1,), pieces=[b"abc"])]
        )
    assert not list(tmp_path.iterdir())


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "what"),
    [
        ([1], b"", "no table"),
        ({"a": 3}, b"", "no type, shape or place"),
        ({"a": GOOD | {"dtype": "F4"}}, bytes(8), "of type F4"),
        ({"a": GOOD | {"dtype": ["F32"]}}, bytes(8), "is of type"),
        ({"a": GOOD | {"shape": [-2]}}, bytes(8), "no shape"),
        ({"a": GOOD | {"shape": [1 << 62]}}, bytes(8), "takes other than 8 bytes"),
        ({"a": GOOD | {"data_offsets": [0, 1 << 62]}}, bytes(8), "past the end"),
        ({"a": GOOD | {"data_offsets": [True, 8]}}, bytes(8), "past the end"),
        ({"a": GOOD, "b": GOOD}, bytes(8), "lies over another"),
        ({"a": GOOD}, bytes(7), "past the end"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any, data: bytes, what: str) -> None:
    with pytest.raises(UserError, match=what):
        read_header(_file(tmp_path / "x", header, data))


@pytest.mark.parametrize("length", [0, 1, 100, 1 << 62])
def test_lengths_that_lie(tmp_path: Path, length: int) -> None:
    with pytest.raises(UserError, match="damaged or cut short"):
        read_header(_file(tmp_path / "x", {"a": GOOD}, bytes(8), length))


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=100)
def test_any_bytes_are_refused_in_one_line(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "x"
    path.write_bytes(data)
    try:
        read_header(path)
    except UserError as error:
        assert "\n" not in str(error)
