"""Extending: training that goes on is training at once; old ids stay; bad settings are named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.tokenizers.extend import ExtendTokenizerConfig, extend, extend_tokenizer
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe
from lmworks.tokenizers.vocabulary import AddedToken

TEXTS = [text for _, text in sorted(topics.items())]
FIELD = TEXTS[40:60]


@pytest.fixture(scope="module")
def base() -> PipelineTokenizer:
    return train_bpe(TEXTS[:20], vocab_size=600)


@pytest.fixture(scope="module")
def extended(base: PipelineTokenizer) -> PipelineTokenizer:
    return extend(base, FIELD, add=200)


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "smollm"])
def test_learning_on_gives_what_learning_at_once_gives(pattern: str) -> None:
    at_once = train_bpe(FIELD, vocab_size=900, pattern=pattern)
    begun = train_bpe(FIELD, vocab_size=500, pattern=pattern)
    assert extend(begun, FIELD, add=400).vocabulary == at_once.vocabulary


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.text(alphabet="ab -é", min_size=1, max_size=30), min_size=3, max_size=12),
    st.integers(1, 12),
)
def test_learning_on_with_ties_and_runs(texts: list[str], first: int) -> None:
    options: dict[str, Any] = {"special_tokens": (), "min_frequency": 1}
    begun = train_bpe(texts, vocab_size=256 + first, **options)
    at_once = train_bpe(texts, vocab_size=276, **options)
    add = at_once.vocab_size - begun.vocab_size
    assert extend(begun, texts, add=add, min_frequency=1).vocabulary.tokens == (
        at_once.vocabulary.tokens
    )


def test_old_ids_and_merges_stay(base: PipelineTokenizer, extended: PipelineTokenizer) -> None:
    assert extended.vocab_size == 800
    assert extended.vocabulary.tokens[:600] == base.vocabulary.tokens
    old = base.vocabulary.model.merges  # type: ignore[union-attr]
    assert extended.vocabulary.model.merges[: len(old)] == old  # type: ignore[union-attr]
    assert extended.vocabulary.added_tokens == base.vocabulary.added_tokens
    for text in FIELD[:5]:
        ids = extended.encode(text)
        assert extended.decode(ids) == text
        assert len(ids) < len(base.encode(text))
        if max(ids) < 600:
            assert ids == base.encode(text)


def test_new_tokens_come_apart_into_what_the_base_gives(
    base: PipelineTokenizer, extended: PipelineTokenizer
) -> None:
    text = FIELD[7]
    pieces = [
        piece
        for token in extended.encode(text)
        for piece in ([token] if token < 600 else base.encode(extended.decode_bytes([token])))
    ]
    assert b"".join(base.decode_bytes([i]) for i in pieces) == text.encode()


def test_what_is_saved_loads_here_and_in_transformers(
    base: PipelineTokenizer, tmp_path: Path
) -> None:
    made = extend(base, FIELD, add=50, words=["heteroskedastic", "§ 23 a"], special_tokens=["<x>"])
    made.save(tmp_path)
    text = "the heteroskedastic heteroskedastic law, § 23 a says<x>"
    assert load_tokenizer(tmp_path).encode(text, allow_special=True) == made.encode(
        text, allow_special=True
    )
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(text, add_special_tokens=False) == made.encode(text, allow_special=True)


@pytest.mark.parametrize("word", ["heteroskedastic", "abababab", "§§§§", "Größenwahn", " spaced"])
def test_a_word_that_must_be_whole(base: PipelineTokenizer, word: str) -> None:
    made = extend(base, [], add=0, words=[word])
    forms = [word] if word.startswith(" ") else [word, " " + word]
    for form in forms:
        assert [made.decode_bytes([i]) for i in made.encode(form)] == [form.encode()]
    assert made.vocabulary.added_tokens == base.vocabulary.added_tokens
    inside = made.encode(f"x {word.strip()}y")
    assert made.decode(inside) == f"x {word.strip()}y"


def test_a_word_of_several_pieces_becomes_an_added_token(base: PipelineTokenizer) -> None:
    made = extend(base, [], add=0, words=["§ 23 a", "two words"], special_tokens=["<|law|>"])
    assert made.vocab_size == 603
    assert made.encode("§ 23 a")[0] == 600 and made.encode("two words") == [601]
    assert 602 not in made.encode("<|law|>")
    assert made.encode("<|law|>", allow_special=True) == [602]


def test_a_special_tokens_text_is_not_learnt(base: PipelineTokenizer) -> None:
    made = extend(base, ["<|endoftext|> <|im_start|>x|>" * 50], add=100, min_frequency=1)
    spelt = {token.text.encode() for token in base.vocabulary.added_tokens}
    assert not spelt & set(made.vocabulary.tokens[600:])
    assert not set(made.encode("<|endoftext|>")) & set(base.special_tokens.values())


def test_added_tokens_outside_the_model_keep_their_ids(base: PipelineTokenizer) -> None:
    once = extend(base, [], add=0, words=["a b"], special_tokens=["<|law|>"])
    twice = extend(once, FIELD, add=30)
    assert twice.vocab_size == 602 + 30
    assert twice.encode("a b<|law|>", allow_special=True) == [600, 601]
    assert twice.vocabulary.tokens[:602] == once.vocabulary.tokens


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=9), min_size=1, max_size=6))
def test_any_words_can_be_made_whole(words: list[str]) -> None:
    base = train_bpe(["abcab bcaab abc cab caab abab bca " * 3], vocab_size=275)
    made = extend(base, [], add=0, words=words)
    assert all(len(made.encode(form)) == 1 for word in words for form in (word, " " + word))


def test_words_do_not_change_how_others_are_cut() -> None:
    base = train_bpe(["bc bc bc bc"], vocab_size=261)
    made = extend(base, [], add=0, words=["ab"])
    assert len(made.encode("ab")) == 1
    assert made.encode("abc") == base.encode("abc")  # b and c still go together first


def test_an_added_token_inside_words_is_not_made_by_merging(base: PipelineTokenizer) -> None:
    inside = AddedToken(id=600, text="zqx", special=False, single_word=True, in_vocabulary=False)
    added = (*base.vocabulary.added_tokens, inside)
    single = PipelineTokenizer(dataclasses.replace(base.vocabulary, added_tokens=added))
    assert single.encode("zqx") == [600] and 600 not in single.encode("zqxw")
    made = extend(single, ["zqxw zqxw kzqx kzqx awvy"] * 9, add=20)
    assert 600 not in made.encode("zqxw kzqx")
    assert made.vocabulary.tokens.count(b"zqx") == 1
    assert b"" in made.vocabulary.model.tokens  # its id has no place among the merged tokens
    with pytest.raises(UserError, match="'zqxw' holds the added token 'zqx'"):
        extend(single, [], add=0, words=["zqxw"])
    assert extend(single, [], add=0, words=["zqx", ""]).vocabulary == single.vocabulary


def test_ranks_that_are_shared_go_on(base: PipelineTokenizer) -> None:
    model = base.vocabulary.model
    ranked = dataclasses.replace(model, ranks=tuple(range(len(model.merges))))  # type: ignore
    tiktoken = PipelineTokenizer(dataclasses.replace(base.vocabulary, model=ranked))
    plain, made = extend(base, FIELD, add=40), extend(tiktoken, FIELD, add=40)
    assert made.encode(FIELD[3]) == plain.encode(FIELD[3])


def test_too_little_text_gives_fewer_tokens(base: PipelineTokenizer) -> None:
    assert 600 < extend(base, ["xqxq xqxq"], add=1000).vocab_size < 610


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add": -1}, "add = -1"),
        ({"add": 5, "special_tokens": ["<|pad|>"]}, "'<|pad|>' is there already"),
        ({"add": 5, "special_tokens": ["<y>", "<y>"]}, "'<y>' is there already"),
        ({"add": 5, "special_tokens": ["x"]}, "'x' is too short"),
    ],
)
def test_bad_settings_are_named(
    base: PipelineTokenizer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        extend(base, FIELD, **options)
    assert message in str(error.value)


def test_no_text(base: PipelineTokenizer) -> None:
    with pytest.raises(UserError, match="no text to learn a tokenizer from"):
        extend(base, ["", "<|pad|>"], add=5)


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\na\nb\n")
    with pytest.raises(UserError, match="only byte-level BPE can be extended"):
        extend(load_tokenizer(tmp_path / "vocab.txt"), FIELD, add=5)


def test_the_stage(base: PipelineTokenizer, tmp_path: Path) -> None:
    base.save(tmp_path / "base")
    (tmp_path / "law.txt").write_text("\n".join(FIELD))
    (tmp_path / "words.txt").write_text("heteroskedastic\n\nGrundgesetz\n")
    config = ExtendTokenizerConfig(
        tokenizer=str(tmp_path / "base"),
        corpus=str(tmp_path / "law.txt"),
        add=100,
        words=str(tmp_path / "words.txt"),
        special_tokens=["<|law|>"],
    )
    made = extend_tokenizer(config, tmp_path / "out")
    assert made.kind == "tokenizer" and made.metrics["num_added"] > 102
    assert made.metrics["bytes_per_token"] > made.metrics["bytes_per_token_before"]
    tokenizer = load_tokenizer(made.path)
    assert len(tokenizer.encode(" Grundgesetz")) == 1
    again = extend_tokenizer(config, tmp_path / "again")
    assert again.manifest["sha256"] == made.manifest["sha256"]
