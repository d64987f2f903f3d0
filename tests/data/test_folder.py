"""Folders as people have them: hidden files, links in circles, locked and vanishing files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lmworks.core.errors import UserError
from lmworks.data import folder as folders
from lmworks.data.documents import Document, Dropped
from lmworks.data.folder import FolderConfig, hash_folder, read_folder

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def read(folder: Path, **config: float) -> dict[str, Document | Dropped]:
    return {row.source: row for row in read_folder(folder, FolderConfig(**config))}


def rules(folder: Path, **config: float) -> dict[str, str]:
    rows = read(folder, **config)
    return {name: row.rule for name, row in rows.items() if isinstance(row, Dropped)}


def test_every_file_is_a_document_or_a_reason_in_sorted_order(tmp_path, pdf):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "page.html").write_text("<title>T</title><p>Some words stand here.</p>")
    (tmp_path / "a.md").write_text("# Title\n\nText.")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF")
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    (tmp_path / "film").write_bytes(PNG)
    (tmp_path / "README").write_text("plain words")
    (tmp_path / "x.py").write_text("x = 1\n")
    pytest.importorskip("pypdfium2")
    (tmp_path / "locked.pdf").write_bytes(pdf([["x"]], encrypted=True))
    rows = read(tmp_path)
    assert list(rows) == [
        *("README", "a.md", "data.csv", "film", "locked.pdf", "photo.jpg", "x.py", "b/page.html")
    ]
    assert rules(tmp_path) == {
        "data.csv": "unknown_kind",
        "film": "binary",
        "locked.pdf": "locked",
        "photo.jpg": "binary",
    }
    assert rows["a.md"].title == "Title"
    assert rows["b/page.html"].group == "b/page.html"


def test_what_nobody_means_is_passed_over(tmp_path):
    for name in (".git", ".hidden", "node_modules", "venv", "env", "made", "half.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("words")
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    (tmp_path / "made" / "lmworks.json").write_text("{}")
    (tmp_path / ".secret.txt").write_text("words")
    (tmp_path / "kept.txt").write_text("words")
    assert list(read(tmp_path)) == ["kept.txt"]


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "to-a.txt").symlink_to("a.txt")
    (tmp_path / "self.txt").symlink_to("self.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    assert sorted(read(tmp_path)) == ["a.txt", "gone.txt", "self.txt", "to-a.txt"]
    assert rules(tmp_path) == {"gone.txt": "unreadable", "self.txt": "unreadable"}


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    assert rules(tmp_path) == {"pipe.txt": "unreadable"}
    with pytest.raises(UserError, match="neither a folder nor a file"):
        read(tmp_path / "pipe.txt")


def test_locked_and_vanishing_files_are_dropped_and_the_rest_goes_on(tmp_path, monkeypatch):
    for name in ("a.txt", "locked.txt", "vanishing.txt", "z.txt"):
        (tmp_path / name).write_text("words")
    read_bytes = Path.read_bytes

    def read_or_refuse(path: Path) -> bytes:
        if path.name == "locked.txt":
            raise PermissionError(13, "Permission denied")
        if path.name == "vanishing.txt":
            raise FileNotFoundError(2, "No such file or directory")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read_or_refuse)
    rows = read(tmp_path)
    assert [name for name, row in rows.items() if isinstance(row, Document)] == ["a.txt", "z.txt"]
    assert rows["locked.txt"].evidence == "Permission denied"
    assert rows["vanishing.txt"].evidence == "No such file or directory"


def test_a_locked_folder_inside_is_named_and_a_locked_root_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path):
        if Path(path) == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused = tmp_path / "locked"
    assert rules(tmp_path) == {"locked": "unreadable"}
    refused = tmp_path
    with pytest.raises(UserError, match="no permission to read"):
        read(tmp_path)


def test_large_files_are_dropped_and_told_how_to_keep_them(tmp_path):
    (tmp_path / "large.txt").write_text("words " * 2000)
    row = read(tmp_path, max_file_megabytes=0.01)["large.txt"]
    assert row.rule == "too_large"
    assert "files.max_file_megabytes" in row.evidence


def test_names_that_are_no_text_can_be_written(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    try:
        path.write_text("words")
    except OSError:
        pytest.skip("this file system takes no such name")
    (row,) = read(tmp_path).values()
    assert row.source == "caf\ufffd.txt"
    hash_folder(tmp_path)


def test_one_file_is_a_folder_of_one(tmp_path):
    (tmp_path / "book.txt").write_text("words")
    assert list(read(tmp_path / "book.txt")) == ["book.txt"]


def test_the_hash_sees_what_is_read_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "film.mp4").write_bytes(b"long")
    (tmp_path / ".git").mkdir()
    first = hash_folder(tmp_path)
    hashed = []
    hash_file = folders.hash_file
    monkeypatch.setattr(folders, "hash_file", lambda p: hashed.append(p.name) or hash_file(p))
    (tmp_path / "film.mp4").write_bytes(b"longer")
    (tmp_path / ".git" / "HEAD").write_text("x")
    assert hash_folder(tmp_path) == first
    assert hashed == ["a.txt"]
    (tmp_path / "a.txt").write_text("other")
    assert hash_folder(tmp_path) != first
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert hash_folder(tmp_path) != first


def test_folders_come_in_the_order_of_their_names(tmp_path):
    names = [f"{letter}{number}" for number in range(4) for letter in "zyxwa"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("words")
    assert list(read(tmp_path)) == [f"{name}/a.txt" for name in sorted(names)]
