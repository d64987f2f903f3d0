"""Training: the merges of Hugging Face, the stage, and settings or text that can't work."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from lmworks.core.errors import UserError
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.patterns import PATTERNS
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import (
    SPECIAL_TOKENS,
    TrainTokenizerConfig,
    train_bpe,
    train_tokenizer,
)

TEXTS = [text for _, text in sorted(topics.items())]


def hugging_face_model(
    texts: Iterable[str],
    expressions: tuple[str, ...],
    *,
    vocab_size: int,
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS,
    min_frequency: int = 2,
) -> dict[str, Any]:
    """The `model` of the tokenizer.json that Hugging Face's trainer makes."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(e), "isolated") for e in expressions]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def our_model(tokenizer: PipelineTokenizer, folder: Path) -> dict[str, Any]:
    tokenizer.save(folder)
    model: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())["model"]
    return model


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_real_text_gives_the_merges_of_hugging_face(pattern: str, tmp_path: Path) -> None:
    theirs = hugging_face_model(TEXTS, PATTERNS[pattern], vocab_size=4096)
    ours = our_model(train_bpe(TEXTS, vocab_size=4096, pattern=pattern), tmp_path)
    assert ours["merges"] == theirs["merges"]
    assert ours["vocab"] == theirs["vocab"]
    assert len(ours["vocab"]) == 4096


def test_ties_and_runs_give_the_merges_of_hugging_face(tmp_path: Path) -> None:
    draw = random.Random(11)
    for _ in range(60):
        letters = draw.choice(["a", "ab", "abc", "-= ", "aab"])
        texts = ["".join(draw.choices(letters, k=draw.randrange(1, 50))) for _ in range(40)]
        settings: dict[str, Any] = {
            "vocab_size": 256 + draw.randrange(1, 200),
            "special_tokens": (),
            "min_frequency": draw.randrange(4),
        }
        theirs = hugging_face_model(texts, PATTERNS["gpt2"], **settings)
        ours = our_model(train_bpe(texts, **settings), tmp_path)
        assert (ours["merges"], ours["vocab"]) == (theirs["merges"], theirs["vocab"])


def test_the_same_text_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_bpe(TEXTS[:10], vocab_size=500).save(tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_too_little_text_gives_a_smaller_vocabulary() -> None:
    tokenizer = train_bpe(["abab abab"], vocab_size=4096)
    assert tokenizer.vocab_size == 260 + len(tokenizer.vocabulary.model.merges) < 270


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 200}, "vocab_size = 200: at least 260 are needed"),
        ({"vocab_size": 500, "pattern": "gpt3"}, "unknown pattern 'gpt3': did you mean 'gpt2'"),
        ({"vocab_size": 500, "special_tokens": ("x",)}, "'x' is too short"),
        ({"vocab_size": 500, "special_tokens": ("<s>", "<s>")}, "'<s>' is named twice"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_bpe(["some text"], **options)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_at_all(texts: list[str]) -> None:
    with pytest.raises(UserError, match="no text to learn a tokenizer from"):
        train_bpe(texts, vocab_size=500)


def write_corpus(folder: Path, train: list[str], heldout: list[str]) -> Path:
    folder.mkdir()
    for name, texts in (("train", train), ("heldout", heldout)):
        rows = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return folder


def test_the_stage_on_a_corpus_folder(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [*TEXTS[:8], "half \ud800 a pair"], TEXTS[8:10])
    config = TrainTokenizerConfig(corpus=str(corpus), vocab_size=700)
    made = train_tokenizer(config, tmp_path / "tokenizer")
    assert made.kind == "tokenizer"
    assert made.metrics["vocab_size"] == 700 and made.metrics["num_merges"] == 440
    assert made.metrics["measured_on"] == "heldout.jsonl"
    tokenizer = load_tokenizer(made.path)
    size = sum(len(text.encode()) for text in TEXTS[8:10])
    tokens = sum(len(tokenizer.encode(text)) for text in TEXTS[8:10])
    assert made.metrics["bytes_per_token"] == pytest.approx(size / tokens)


def test_the_stage_on_a_text_file(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(TEXTS[3])
    config = TrainTokenizerConfig(corpus=str(book), vocab_size=300, pattern="llama3")
    made = train_tokenizer(config, tmp_path / "tokenizer")
    assert made.metrics["measured_on"] == "book.txt" and made.metrics["bytes_per_token"] > 1
    expected = train_bpe([TEXTS[3]], vocab_size=300, pattern="llama3")
    assert load_tokenizer(made.path).vocabulary == expected.vocabulary


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "no text to learn"),
        ("a.txt", b"caf\xe9", r"a.txt is not UTF-8 text \(byte 3\)"),
        ("a.jsonl", b'{"text": "x"}\nno json\n', r"a.jsonl, line 2: no JSON object with 'text'"),
        ("a.jsonl", b'{"title": "x"}\n', r"a.jsonl, line 1: no JSON object with 'text'"),
        ("a.jsonl", b'{"text": 3}\n', r"a.jsonl, line 1: 'text' is no string"),
        ("a.jsonl", b"[" * 100_000, r"a.jsonl, line 1: no JSON object"),
    ],
)
def test_a_bad_corpus_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    config = TrainTokenizerConfig(corpus=str(tmp_path / name), vocab_size=300)
    with pytest.raises(UserError, match=message):
        train_tokenizer(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    config = TrainTokenizerConfig(corpus=str(tmp_path / "corpus"))
    with pytest.raises(UserError, match=r"corpus holds no files: give a corpus"):
        train_tokenizer(config, tmp_path / "out")
