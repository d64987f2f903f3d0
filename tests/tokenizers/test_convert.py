"""`tokenizer convert`: what is written is the same tokenizer for those who define the format."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from lmworks.cli.main import main
from lmworks.core.errors import UserError
from lmworks.tokenizers import convert as module
from lmworks.tokenizers.convert import convert
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Path:
    """A small SentencePiece model as Llama's."""
    import sentencepiece

    folder: Path = tmp_path_factory.mktemp("model")
    (folder / "corpus.txt").write_text("\n".join(sorted(topics.values())[:12]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def run(source: Path, to: str, out: Path) -> int:
    return main(["tokenizer", "convert", str(source), "--to", to, "--out", str(out)])


def test_a_model_to_every_format(
    model: Path, tmp_path: Path, hard: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from sentencepiece import SentencePieceProcessor

    from tokenizers import Tokenizer

    texts = [
        text for text in hard[::50] if max(text, default="") < "\ud800" or max(text) > "\udfff"
    ]
    expected = SentencePieceProcessor(model_file=str(model)).encode(texts)
    for to, name in (("gguf", "v.gguf"), ("sentencepiece", "v.model"), ("huggingface", "folder")):
        assert run(model, to, tmp_path / name) == 0
        shown = capsys.readouterr().out
        assert f"wrote {tmp_path / name}" in shown and "the same ids for" in shown
        assert load_tokenizer(tmp_path / name).encode_batch(texts) == expected
    theirs = Tokenizer.from_file(str(tmp_path / "folder" / "tokenizer.json"))
    theirs.encode_special_tokens = True
    found = theirs.encode_batch(texts, add_special_tokens=False)
    assert [encoding.ids for encoding in found] == expected
    again = SentencePieceProcessor(model_file=str(tmp_path / "v.model"))
    assert again.encode(texts) == expected
    assert run(tmp_path / "folder", "gguf", tmp_path / "again.gguf") == 0
    assert load_tokenizer(tmp_path / "again.gguf").encode_batch(texts) == expected


def test_ranks(small: PipelineTokenizer, tmp_path: Path) -> None:
    import tiktoken

    small.save(tmp_path / "own")
    assert run(tmp_path / "own", "tiktoken", tmp_path / "own.tiktoken") == 0
    lines = (line.split() for line in (tmp_path / "own.tiktoken").read_text().splitlines())
    theirs = tiktoken.Encoding(
        "own",
        pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in lines},
        special_tokens=small.special_tokens,
    )
    for text in ("the cat sat on the mat. " * 3, "naïve 12 日本\n\n  x"):
        assert theirs.encode_ordinary(text) == small.encode(text)


def test_gguf_for_llama_cpp(
    small: PipelineTokenizer, tmp_path: Path, llama_cpp: Callable[..., Any]
) -> None:
    import importlib.util

    convert(small, "gguf", tmp_path / "small.gguf")
    assert importlib.util.find_spec("xllamacpp")
    from lmworks.core.gguf import read_gguf

    metadata = read_gguf(tmp_path / "small.gguf").metadata
    assert metadata["general.architecture"] == "llama"
    del metadata["general.architecture"]
    assert llama_cpp(metadata).encode("the cat sat") == small.encode("the cat sat")


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("tiktoken", "x.tiktoken", "tiktoken rank files hold byte-level BPE only"),
        ("tiktoken", "x.txt", "give the file a name that ends in .tiktoken"),
        ("gguf", "x", "give the file a name that ends in .gguf"),
        ("huggingface", "there", "there is a file: name a folder"),
        ("sentencepiece", "folder.model", "is a folder: name a file"),
        ("onnx", "x", "is not one of"),
    ],
)
def test_one_line_and_nothing_written(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    to: str,
    name: str,
    message: str,
) -> None:
    (tmp_path / "there").write_text("x")
    (tmp_path / "folder.model").mkdir()
    before = sorted(tmp_path.iterdir())
    assert run(model, to, tmp_path / name) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown and "\n" not in shown
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFC"}}, r"normalizer \(NFC\)"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "its word pattern has no name there"),
    ],
)
def test_what_gguf_has_no_place_for(
    small: PipelineTokenizer, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    other = PipelineTokenizer(dataclasses.replace(small.vocabulary, **change))
    with pytest.raises(UserError, match=message):
        convert(other, "gguf", tmp_path / "x.gguf")
    with pytest.raises(UserError, match="did you mean 'gguf'"):
        convert(other, "ggml", tmp_path / "x.gguf")


def test_what_tiktoken_has_no_place_for(small: PipelineTokenizer, tmp_path: Path) -> None:
    found = [dataclasses.replace(token, special=False) for token in small.vocabulary.added_tokens]
    model: Any = small.vocabulary.model
    for change, message in (
        ({"normalizer": {"type": "NFC"}}, "changes no text"),
        ({"added_tokens": tuple(found)}, "has special tokens only"),
        ({"model": dataclasses.replace(model, merges=model.merges[1:])}, "skips the merges"),
        ({"model": dataclasses.replace(model, merges=model.merges[::-1])}, "not in the order"),
    ):
        other = PipelineTokenizer(dataclasses.replace(small.vocabulary, **change))
        with pytest.raises(UserError, match=message):
            convert(other, "tiktoken", tmp_path / "x.tiktoken")


def test_a_file_that_reads_otherwise_is_not_kept(
    small: PipelineTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = train_bpe(["another text altogether " * 9], vocab_size=small.vocab_size).vocabulary

    def wrong(vocabulary: Any, out: Path) -> tuple[str, Any]:
        out.write_text("x")
        return "wrong", other

    monkeypatch.setattr(module, "_gguf", wrong)
    with pytest.raises(UserError, match="read again it would be another tokenizer, so nothing was"):
        convert(small, "gguf", tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []
