"""Importance matrices: llama.cpp's two kinds of file, and files that are neither."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.core.gguf import GGUFTensor, write_gguf
from lmworks.core.importance import read_importance, write_importance

NAME = "blk.0.attn_q.weight"


def dat(entries: dict[str, np.ndarray], calls: int) -> bytes:
    data = struct.pack("<i", len(entries))
    for name, values in entries.items():
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", calls, len(values)) + (values * calls).astype("<f4").tobytes()
    return data + struct.pack("<ii", calls, 5) + b"a.txt"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    squares = {NAME: np.arange(1, 65, dtype=np.float32), "output.weight": np.ones(32, np.float32)}
    write_importance(tmp_path / "i.gguf", squares, {NAME: 1000, "output.weight": 7}, texts=["a"])
    again = read_importance(tmp_path / "i.gguf")
    assert sorted(again) == sorted(squares)
    for name, values in squares.items():
        assert np.allclose(again[name], values, rtol=1e-6)


def test_gguf_reads_what_is_written(tmp_path: Path) -> None:
    reference = pytest.importorskip("gguf")
    write_importance(tmp_path / "i.gguf", {NAME: np.full(64, 3, np.float32)}, 10, texts=["a.txt"])
    file = reference.GGUFReader(tmp_path / "i.gguf")
    assert file.get_field("general.type").contents() == "imatrix"
    assert file.get_field("imatrix.datasets").contents() == ["a.txt"]
    assert file.get_field("imatrix.chunk_count").contents() == 1
    tensors = {tensor.name: tensor for tensor in file.tensors}
    assert tensors[f"{NAME}.in_sum2"].shape.tolist() == [64, 1]
    assert tensors[f"{NAME}.in_sum2"].data.ravel().tolist() == [30.0] * 64
    assert tensors[f"{NAME}.counts"].data.ravel().tolist() == [10.0]


def test_the_old_kind_is_read(tmp_path: Path) -> None:
    squares = np.arange(1, 33, dtype=np.float32)
    (tmp_path / "i.dat").write_bytes(dat({NAME: squares}, 4))
    assert np.array_equal(read_importance(tmp_path / "i.dat")[NAME], squares)


def test_each_expert_has_its_own(tmp_path: Path) -> None:
    arrays = {".in_sum2": [[2, 4], [0, 0]], ".counts": [[2], [0]]}
    tensors = {
        NAME + end: GGUFTensor(
            name=NAME + end,
            shape=np.shape(values),
            type="F32",
            data=np.array(values, np.float32).view(np.uint8).reshape(-1),
        )
        for end, values in arrays.items()
    }
    write_gguf(tmp_path / "i.gguf", {"general.type": "imatrix"}, tensors)
    # The text never reached the second.
    assert read_importance(tmp_path / "i.gguf")[NAME].tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut short"),
        (struct.pack("<i", 1 << 30), "cut short"),
        (struct.pack("<ii", 1, 1 << 30), "a name of 1073741824 bytes"),
        (struct.pack("<ii1sii", 1, 1, b"a", 1, 1 << 30), "claims 1073741824 values"),
        (dat({"a": np.array([-1.0])}, 1), "damaged"),
        (dat({"a": np.array([np.nan])}, 1), "damaged"),
        (dat({}, 1), "no importance"),
    ],
)
def test_what_is_no_importance_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "i.dat").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_importance(tmp_path / "i.dat")


def test_a_model_is_no_importance(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"}, {})
    with pytest.raises(UserError, match="holds no importance matrix"):
        read_importance(tmp_path / "m.gguf")


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.integers(0, 80))
def test_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, rubbish: bytes, at: int
) -> None:
    whole = dat({"a.weight": np.arange(8.0), "b.weight": np.ones(4)}, 3)
    path = tmp_path_factory.mktemp("i") / "i.dat"
    path.write_bytes(whole[:at] + rubbish)
    try:
        found = read_importance(path)
    except UserError:
        return
    assert all(np.isfinite(values).all() for values in found.values())
