"""SentencePiece models with user-defined symbols, and models written: ids are SentencePiece's."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from lmworks.core.errors import UserError
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.sentencepiece import from_bytes
from lmworks.tokenizers.sentencepiece_writer import save, to_bytes
from lmworks.tokenizers.tokenizer import PipelineTokenizer

sentencepiece = pytest.importorskip("sentencepiece")
SYMBOLS = ["<sep>", "</sep>", "▁▁", "\n\n", "the"]
PARTS = [*SYMBOLS, " ", "  ", "\n", "there", "a", "s", "▁", "other", "é", "日", "and of", "<"]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[True, False])
def model(kind: str, request: pytest.FixtureRequest, tmp_path_factory: Any) -> Path:
    """A model with user-defined symbols, with and without a space put before the text."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "corpus.txt").write_text("\n".join(sorted(topics.values())[:20]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=700,
        model_type=kind,
        byte_fallback=True,
        user_defined_symbols=SYMBOLS,
        add_dummy_prefix=request.param,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def strings() -> list[str]:
    draw = random.Random(1)
    return ["".join(draw.choices(PARTS, k=draw.randrange(1, 9))) for _ in range(500)]


def test_user_defined_symbols(model: Path) -> None:
    ours = load_tokenizer(model)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for text in strings():
        expected = theirs.encode(text)
        assert ours.encode_readable(text) == ours.encode_array(text).tolist() == expected, text
        assert ours.decode(expected) == theirs.decode(expected)
        whole = ours.decode_bytes(expected).decode()
        assert ours.decode(expected) in (whole, whole[1:])


def test_models_are_written(model: Path, tmp_path: Path) -> None:
    ours = load_tokenizer(model)
    save(ours.vocabulary, tmp_path / "again.model")
    assert load_tokenizer(tmp_path / "again.model").vocabulary == ours.vocabulary
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    again = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "again.model"))
    assert (again.bos_id(), again.eos_id(), again.unk_id()) == (1, 2, 0)
    assert again.encode(strings()) == theirs.encode(strings())


def test_what_a_model_can_not_hold(model: Path, small: PipelineTokenizer) -> None:
    with pytest.raises(UserError, match="over plain characters only"):
        to_bytes(small.vocabulary)
    whole = from_bytes(model.read_bytes())
    for change, message in (
        ({"normalizer": {"type": "NFC"}}, "no place for the step 'NFC'"),
        ({"normalizer": None}, "no step writes spaces as ▁"),
        ({"bos_token": "</s>"}, "name the bos_token '<s>', not '</s>'"),
    ):
        with pytest.raises(UserError, match=message):
            to_bytes(dataclasses.replace(whole, **change))


def test_merges_that_scores_can_not_tell(model: Path) -> None:
    whole = from_bytes(model.read_bytes())
    merges = getattr(whole.model, "merges", ())
    if not merges:
        pytest.skip("Unigram has no merges")
    parts: Any = {"merges": merges[1:], "ranks": None}
    missing = dataclasses.replace(whole, model=dataclasses.replace(whole.model, **parts))
    with pytest.raises(UserError, match="no merge joins"):
        to_bytes(missing)


def test_sums_begin_anew_in_long_texts(tmp_path: Path) -> None:
    """Beyond 100,000 near-ties fall otherwise: runs of one character have many of them."""
    (tmp_path / "corpus.txt").write_text("\n".join(sorted(topics.values())[:20]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=700,
        model_type="unigram",
        minloglevel=2,
    )
    path = tmp_path / "tokenizer.model"
    ours = load_tokenizer(path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    draw = random.Random(2)
    text = "".join(c * draw.randrange(1, 30) for c in draw.choices("aeis-=.0 ", k=20_000))
    expected = theirs.encode(text)
    assert ours.encode_array(text).tolist() == expected
    assert ours.encode_readable(text) == expected
