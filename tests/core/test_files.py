"""Files: whole or not at all, errors in one line, hashes over content."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmworks.core.errors import UserError
from lmworks.core.files import (
    atomic_open,
    atomic_save,
    hash_file,
    hash_folder,
    hash_json,
    read_json,
    read_json_lines,
    write_json,
    write_text,
    writing,
)


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_an_error_in_the_block_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "former")
    with pytest.raises(ZeroDivisionError), atomic_open(path, "w") as file:
        file.write("half")
        raise ZeroDivisionError
    assert path.read_text() == "former"
    assert listing(tmp_path) == ["a.txt"]


def test_ctrl_c_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "former")
    with pytest.raises(KeyboardInterrupt), atomic_open(path, "w") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "former" and listing(tmp_path) == ["a.txt"]


def test_the_new_content_is_not_seen_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with atomic_open(path, "w") as file:
        file.write("new")
        file.flush()
        assert not path.exists()
    assert path.read_text() == "new" and listing(path.parent) == ["a.txt"]


def test_atomic_save_hands_a_path_and_renames_it(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    atomic_save(path, lambda part: part.write_bytes(b"one") and None)

    def fails(part: Path) -> None:
        part.write_bytes(b"tw")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        atomic_save(path, fails)
    assert path.read_bytes() == b"one" and listing(tmp_path) == ["a.bin"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True
        )
    except OSError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("a small file system can't be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("how", ["open", "text", "save", "unbuffered"])
def test_a_full_disk_is_said_and_the_former_file_stays(small_disk: Path, how: str) -> None:
    path = small_disk / "a.txt"
    write_text(path, "former")
    big = "x" * 200_000
    with pytest.raises(UserError, match="the disk is full") as caught:
        if how == "open":
            with atomic_open(path) as file:
                file.write(big.encode())
        elif how == "text":
            write_text(path, big)
        elif how == "save":
            atomic_save(path, lambda part: part.write_text(big) and None)
        else:
            with atomic_open(path, buffering=0) as file:
                while True:
                    file.write(b"y" * 4096)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_text() == "former" and listing(small_disk) == ["a.txt"]
    write_text(path, "after")  # and there is room again
    assert path.read_text() == "after"


def test_safetensors_full_disk_text_is_understood(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the disk is full"), writing(tmp_path / "new" / "x"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "no permission to write"),
        (errno.EPERM, "no permission to write"),
        (errno.EROFS, "no permission to write"),
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=said) as caught:
        write_json(path, 2)
    assert str(path) in str(caught.value)
    assert read_json(path) == 1 and listing(tmp_path) == ["a.json"]


def test_another_error_of_the_system_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="weird"), writing(tmp_path / "a"):
        raise OSError(errno.EIO, "weird")


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        write_text(tmp_path / "a" / "b.txt", "")


def test_a_folder_in_the_way_of_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        write_text(tmp_path / "a", "")
    assert listing(tmp_path) == ["a"]


def test_a_name_too_long_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too long"):
        write_text(tmp_path / ("a" * 300), "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1,\n  "b": }', "at line 2, column 8"),
        (b"", "line 1, column 1"),
        (b'{"a": 1', "line 1"),
        (b"\xff\xfe", "is not UTF-8 text (byte 0)"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "not valid JSON"),
    ],
)
def test_faults_in_json_name_the_place(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path, "model config")
    text = str(caught.value)
    assert said in text and text.startswith(f"model config {path}") and "\n" not in text


def test_json_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model config not found"):
        read_json(tmp_path / "none.json", "model config")
    with pytest.raises(UserError, match="can't be read"):
        read_json(tmp_path, "model config")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="model config"):
        read_json(tmp_path / "file" / "none.json", "model config")


def test_same_value_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_json(tmp_path / name, {"ä": [1, 2.5, None]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_json(tmp_path / "a") == {"ä": [1, 2.5, None]}


def test_a_folders_hash_is_over_names_and_contents(tmp_path: Path) -> None:
    def make(name: str, **files: str) -> str:
        for file, text in files.items():
            write_text(tmp_path / name / "sub" / file, text)
        return hash_folder(tmp_path / name)

    first = make("a", x="1", y="2")
    assert first == make("b", y="2", x="1")
    assert len({first, make("c", x="2", y="1"), make("d", x="1"), make("e", x="12", y="")}) == 4
    write_text(tmp_path / "a" / ".hidden", "")
    write_text(tmp_path / "a" / ".work" / "z", "")
    write_text(tmp_path / "a" / "lmworks.json", "")
    assert hash_folder(tmp_path / "a", skip=("lmworks.json",)) == first
    assert hash_folder(tmp_path / "a") != first


def test_hashes_of_files_and_values(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a").startswith("ba7816bf8f01cfea")  # FIPS 180-2's example
    assert hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": "1"})


def test_json_lines_have_their_place(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n[2]\n"\xc3\xa4"')
    found = [(line.number, line.value) for line in read_json_lines(path, max_bytes=16)]
    assert found == [(1, {"a": 1}), (4, [2]), (5, "ä")]
    assert next(read_json_lines(path)).where == f"{path}, line 1"
    path.write_bytes(b'"\xff"\n')
    assert next(read_json_lines(path, errors="replace")).value == "\ufffd"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a":', ": not valid JSON: Expecting value"),
        (b'"\xff"', r": not valid JSON: not UTF-8 text \(byte 1 of the line\)"),
        (b"[" * 100_000, ": not valid JSON: nested too deeply"),
        (b"1" * 5000, ": not valid JSON: Exceeds"),
        (b'"' + b"x" * (1 << 20) + b'"', ": over 1 MB"),
    ],
)
def test_a_line_that_is_no_json_is_named(tmp_path, line, words):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"1\n\n" + line + b"\n")
    lines = read_json_lines(path, max_bytes=1 << 20)
    assert next(lines).value == 1
    with pytest.raises(UserError, match=f"rows.jsonl, line 3{words}"):
        next(lines)
