"""Damaged and hostile tokenizer files: one line, by name, and never anything but `UserError`."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmworks.cli.main import main
from lmworks.core.errors import UserError
from lmworks.core.gguf import write_gguf
from lmworks.tokenizers import patterns, tiktoken
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.sentencepiece import Settings, assembled, bpe, unigram
from lmworks.tokenizers.sentencepiece_writer import save
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe
from lmworks.tokenizers.vocab_txt import from_texts
from lmworks.tokenizers.vocabulary import Vocabulary

GARBAGE = b"\x93\xfe\x00\xff" * 1000
PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<sep>", 0.0, 4)]
PIECES += [(text, -float(i), 1) for i, text in enumerate(["▁", "t", "h", "e", "th", "the", "▁the"])]
PIECES += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: Any) -> list[Path]:
    """A small one of every kind."""
    from lmworks.tokenizers.sentencepiece import Piece

    folder: Path = tmp_path_factory.mktemp("files")
    pieces = [Piece(*piece) for piece in PIECES]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "##t", "c", "##a"]
    made: dict[str, Vocabulary] = {
        "bytes": train_bpe(["the cat sat on the mat. " * 20], vocab_size=280).vocabulary,
        "bpe": assembled(
            pieces, bpe(pieces), Settings(remove_extra_whitespaces=False), unk_token="<unk>"
        ),
        "unigram": assembled(pieces, unigram(pieces), Settings(), unk_token="<unk>"),
        "words": from_texts(words, lowercase=True),
    }
    for name, vocabulary in made.items():
        tokenizer = PipelineTokenizer(vocabulary)
        tokenizer.save(folder / name)
        write_gguf(folder / f"{name}.gguf", tokenizer.gguf_metadata(), {})
        if name in ("bpe", "unigram"):
            save(vocabulary, folder / f"{name}.model")
    tiktoken.save(made["bytes"], folder / "bytes.tiktoken")
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and "config" not in path.name
    )


def use(path: Path) -> None:
    """All that a person would do with it."""
    tokenizer = load_tokenizer(path)
    for text in ("the cat <sep> 日本 é\n", ""):
        ids = tokenizer.encode_readable(text, allow_special=True)
        tokenizer.decode(ids)
        tokenizer.encoding(text)


def only_user_errors(path: Path) -> None:
    try:
        use(path)
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000


quick = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


@quick
@given(data=st.data())
def test_flipped_lost_and_added_bytes(
    files: list[Path], tmp_path: Path, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(files), label="file")
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1), label="at")
    if data.draw(st.booleans(), label="cut"):
        del content[at:]
    else:
        size = data.draw(st.integers(0, 12), label="size")
        content[at : at + size] = data.draw(st.binary(max_size=8), label="new")
    target = tmp_path / path.name
    target.write_bytes(content)
    only_user_errors(target)


VALUES: list[Any] = [
    *(None, True, 0, -1, 10**30, 1.5, float("nan"), "", "x", "\ud800", [], {}, [[]], ["a", "b"]),
    *({"type": "x"}, {"Regex": "("}, {"String": ""}, {"type": ["a"]}, "\\p{Foo}", "a b"),
    {"type": "Sequence", "normalizers": None},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands; of a long list or vocabulary the beginning."""
    yield path
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in list(inner)[:25]:
            yield from places(part, (*path, key))


@quick
@given(data=st.data())
def test_lost_and_swapped_fields(files: list[Path], tmp_path: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([p for p in files if p.suffix == ".json"]), label="file")
    content = copy.deepcopy(json.loads(path.read_text()))
    place = data.draw(st.sampled_from(list(places(content))[1:]), label="place")
    owner = content
    for key in place[:-1]:
        owner = owner[key]
    if data.draw(st.booleans(), label="lost"):
        del owner[place[-1]]
    else:
        owner[place[-1]] = data.draw(st.sampled_from(VALUES), label="value")
    target = tmp_path / "tokenizer.json"
    target.write_text(json.dumps(content))
    only_user_errors(target)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.model", GARBAGE, "is not a SentencePiece model"),
        ("x.tiktoken", GARBAGE, "line 1 is not a token in base64 and a rank"),
        ("x.gguf", GARBAGE, "does not begin with the letters GGUF"),
        ("tekken.json", GARBAGE, "is not UTF-8 text"),
        ("tokenizer.json", GARBAGE, "is not UTF-8 text"),
        ("vocab.txt", GARBAGE, "can't be read as UTF-8 text"),
        ("x.model", b"", "no pieces or no trainer settings"),
        ("x.tiktoken", b"", "there is no token in it"),
        ("x.gguf", b"", "is too short to be a GGUF file"),
        ("x.model", b"\x0a" + b"\xff" * 8 + b"\x7fabc", "a field that does not end"),
        ("x.gguf", b"GGUF\3\0\0\0" + b"\xff" * 16, "more than it has bytes for"),
        ("x.tiktoken", b"YQ== 0\nYg== 99999999\n", "the ranks have gaps"),
        ("x.tiktoken", b"YQ== 0\nYg== 0\n", "or are given twice"),
        ("x.tiktoken", b"YQ== -1\n", "the ranks have gaps"),
        ("x.tiktoken", b"YQ== 0\n*\n", "line 2 is not a token in base64 and a rank"),
        ("tokenizer.json", b"[" * 100_000, "is nested too deeply to be read"),
        ("tokenizer.json", b'{"model": {"type": "Odd"}}', "models of type 'Odd' can't be read"),
    ],
)
def test_one_line_by_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(["tokenizer", "encode", str(tmp_path / name), "text"]) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown and "\n" not in shown and name in shown


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "(?:a|aa)+$"}),
        lambda d: d.update(
            normalizer={"type": "Replace", "pattern": {"Regex": "(?:a|aa)+$"}, "content": "x"}
        ),
    ],
)
def test_an_endless_pattern(
    files: list[Path],
    tmp_path: Path,
    edit: Edit,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(patterns, "_SECONDS", 0.1)
    data = json.loads(
        next(p for p in files if p.parts[-2:] == ("bytes", "tokenizer.json")).read_text()
    )
    edit(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert main(["tokenizer", "encode", str(tmp_path), "a" * 60 + "!"]) == 2
    assert "was given up after 0 s on a text of 61 characters" in capsys.readouterr().err


def test_no_text_and_no_utf8(
    files: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next(str(p.parent) for p in files if p.parent.name == "bytes")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("") == [] == tokenizer.encode(b"")
    for data in (b"\xed\xa0\x80", b"a\xff", b"\x80" * 9, "日".encode()[:2]):
        assert tokenizer.decode_bytes(tokenizer.encode(data)) == data
    assert tokenizer.decode(tokenizer.encode("\ud800")) == "\ufffd" * 3

    class Input:
        class buffer:
            @staticmethod
            def read() -> bytes:
                return b""

    monkeypatch.setattr(sys, "stdin", Input)
    assert main(["tokenizer", "encode", folder]) == 0
    assert capsys.readouterr().out.startswith("0 tokens")


def test_a_long_line_by_command(
    files: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the array and in parts; the same ids."""
    from lmworks.cli import encode

    folder = next(str(p.parent) for p in files if p.parent.name == "bytes")
    expected = load_tokenizer(folder).encode("the cat " * 50)
    monkeypatch.setattr(encode, "_LONG", 7)
    assert main(["tokenizer", "encode", folder, "the cat " * 50, "--ids"]) == 0
    assert capsys.readouterr().out == " ".join(map(str, expected)) + "\n"
