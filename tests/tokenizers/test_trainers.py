"""WordPiece and SentencePiece-style BPE against the tools that define them."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.tokenizers.counting import count_texts
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_on
from lmworks.tokenizers.trainers.base import TRAINERS, Counts, Wanted, trainer_for
from lmworks.tokenizers.trainers.sentencepiece import BYTES, SentencePieceTrainer
from lmworks.tokenizers.trainers.wordpiece import WordPieceTrainer

TEXTS = [text for _, text in sorted(topics.items())]
MIXED = ["Straße naïve Ελλάδα 中文字 emoji 😀👍 x_y-z", "RÉSUMÉ déjà vu; été\tund\nmehr   Raum"]
BERT_SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]


def wordpiece_of_hugging_face(texts: list[str], *, lowercase: bool = True, **options: Any) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    trainer = trainers.WordPieceTrainer(special_tokens=BERT_SPECIAL, show_progress=False, **options)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wordpiece(texts: list[str], inside_first: list[str], wanted: Wanted) -> PipelineTokenizer:
    trainer = WordPieceTrainer(wanted)
    words = count_texts(trainer.blank(), texts)
    return PipelineTokenizer(trainer.learn(Counts(languages={"": words}), inside_first))


def inside_order(vocab: dict[str, int]) -> list[str]:
    """The order that Hugging Face's hash table gave to `##` characters in this run."""
    return [t[2:] for t in sorted(vocab, key=vocab.__getitem__) if len(t) == 3 and t[:2] == "##"]


@pytest.mark.parametrize("pattern", ["bert", "bert-cased"])
@pytest.mark.parametrize(("vocab_size", "min_frequency"), [(2500, 2), (900, 0)])
def test_wordpiece_gives_the_tokens_of_hugging_face(
    pattern: str, vocab_size: int, min_frequency: int
) -> None:
    texts = [*TEXTS[::2], *MIXED]
    theirs = wordpiece_of_hugging_face(
        texts, lowercase=pattern == "bert", vocab_size=vocab_size, min_frequency=min_frequency
    ).get_vocab()
    wanted = Wanted(vocab_size=vocab_size, min_frequency=min_frequency, pattern=pattern)
    ours = wordpiece(texts, inside_order(theirs), wanted)
    assert {text: i for i, text in enumerate(ours.vocabulary.texts)} == theirs


def test_wordpiece_ties_are_those_of_hugging_face() -> None:
    draw = random.Random(5)
    for _ in range(40):
        letters = draw.choice(["a", "ab", "abc", "aab#", "éa"])
        words = ("".join(draw.choices(letters, k=draw.randrange(1, 9))) for _ in range(60))
        texts = [" ".join(words)]
        size, least = draw.randrange(20, 120), draw.randrange(4)
        found = wordpiece_of_hugging_face(texts, vocab_size=size, min_frequency=least).get_vocab()
        wanted = Wanted(vocab_size=max(size, 25), min_frequency=least)
        if size >= 25:
            ours = wordpiece(texts, inside_order(found), wanted)
            assert {text: i for i, text in enumerate(ours.vocabulary.texts)} == found


def sentencepiece_of_hugging_face(texts: list[str], **options: Any) -> dict[str, Any]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))  # type: ignore[call-arg]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Split(Regex(r"[\r\n]+"), "isolated"),
        ]
    )
    special = [*SentencePieceTrainer.special_tokens, *BYTES]
    # Theirs makes no token of so many characters; ours none of more than 16.
    trainer = trainers.BpeTrainer(
        special_tokens=special, show_progress=False, max_token_length=17, **options
    )
    tokenizer.train_from_iterator(texts, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


@pytest.mark.parametrize(("vocab_size", "min_frequency"), [(3000, 2), (1200, 5)])
def test_sentencepiece_bpe_gives_the_merges_of_hugging_face(
    vocab_size: int, min_frequency: int, tmp_path: Path
) -> None:
    texts = [*TEXTS[::2], *MIXED]
    options = {"vocab_size": vocab_size, "min_frequency": min_frequency}
    theirs = sentencepiece_of_hugging_face(texts, **options)
    train_on(texts, "sentencepiece-bpe", Wanted(**options)).save(tmp_path)
    ours = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    assert ours["merges"] == theirs["merges"]
    assert ours["vocab"] == theirs["vocab"] and len(ours["vocab"]) == vocab_size


def test_sentencepiece_bpe_is_near_that_of_sentencepiece() -> None:
    """Theirs breaks ties otherwise, and counts only the most frequent pairs anew each time."""
    import io

    import sentencepiece

    lines = [" ".join(line.split()) for text in TEXTS for line in text.splitlines()]
    lines = [line for line in lines if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=1500,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_number=False,
        pad_id=3,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = train_on(lines, "sentencepiece-bpe", Wanted(vocab_size=1500, min_frequency=1))
    pieces = {theirs.id_to_piece(i) for i in range(1500)}
    assert len(pieces & set(ours.vocabulary.texts)) > 0.98 * 1500
    tokens = sum(map(len, ours.encode_batch(lines)))
    assert tokens == pytest.approx(sum(map(len, theirs.encode(lines))), rel=0.002)


@pytest.fixture(scope="module", params=sorted(TRAINERS))
def trained(request: pytest.FixtureRequest) -> PipelineTokenizer:
    wanted = Wanted(vocab_size=1500, keep=("<think>", "new york", "straße 1"), reserve=3)
    return train_on([*TEXTS[::4], *MIXED], request.param, wanted)


def test_what_is_saved_gives_the_same_ids_in_transformers(
    trained: PipelineTokenizer, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    trained.save(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS[1::9], *MIXED, "in new york <think>so</think>", "  a\n\n b ", "▁x"]:
        ids = trained.encode(text)
        assert ids == trained.encode_readable(text) == ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids) == trained.decode(ids)
    around = theirs("a pair", "of texts")["input_ids"]
    assert around == trained.encoding("a pair", "of texts").ids


def test_kept_and_reserved_tokens_are_whole(trained: PipelineTokenizer) -> None:
    ids = trained.vocabulary.added_ids
    found = trained.encode("xstraße 1<think>y")
    assert ids["straße 1"] in found and ids["<think>"] in found
    assert ids["<|reserved_0|>"] not in trained.encode("<|reserved_0|>")
    special = len(trained.special_tokens) - 3
    assert [ids[f"<|reserved_{i}|>"] for i in range(3)] == list(range(special, special + 3))


LOSSLESS = {
    kind: train_on([*TEXTS[::9], *MIXED], kind, Wanted(vocab_size=900, keep=("<think>",)))
    for kind in ("bpe", "sentencepiece-bpe", "unigram")
}


@pytest.mark.parametrize("kind", sorted(LOSSLESS))
@settings(deadline=None, max_examples=150)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60))
def test_any_text_comes_back(kind: str, text: str) -> None:
    assert LOSSLESS[kind].decode(LOSSLESS[kind].encode(text)) == text


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [("bpe", r"regex:\S+|\s+"), ("sentencepiece-bpe", ""), ("unigram", ""), ("wordpiece", "")],
)
def test_special_tokens_never_come_of_text(kind: str, pattern: str) -> None:
    text = "<s>\n<|endoftext|>\n<0x41>\n<unk>\n[CLS]\n"
    tokenizer = train_on([text * 50], kind, Wanted(vocab_size=400, pattern=pattern))
    ids = tokenizer.encode(text)
    assert not set(tokenizer.special_tokens.values()) & set(ids)
    if kind != "wordpiece":
        assert tokenizer.decode(ids) == text


def test_a_smaller_alphabet() -> None:
    texts = ["aaaa bbb cc ☃ d " * 10]
    for kind, alphabet in itertools.product(("sentencepiece-bpe", "unigram"), (3, 0.75)):
        tokenizer = train_on(texts, kind, Wanted(vocab_size=400, alphabet=alphabet))
        single = {t for t in tokenizer.vocabulary.texts if len(t) == 1}
        assert single >= {"a", "b", "▁"} and "☃" not in single
        assert tokenizer.decode(tokenizer.encode("☃ café")) == "☃ café"
    gap = train_on(["qa☃bq qa☃bq " * 9], "sentencepiece-bpe", Wanted(vocab_size=300, alphabet=4))
    assert "qa" in gap.vocabulary.texts and "ab" not in gap.vocabulary.texts
    joined = wordpiece(["ax☃y axy axy " * 9], [], Wanted(vocab_size=30, alphabet=3))
    theirs = wordpiece_of_hugging_face(["ax☃y axy axy " * 9], vocab_size=30, limit_alphabet=3)
    assert "axy" in theirs.get_vocab() and b"axy" in joined.vocabulary.tokens


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bpe", {"vocab_size": 262, "reserve": 3}, "at least 263 are needed, 256 for the bytes"),
        ("wordpiece", {"vocab_size": 8}, "at least .* are needed, .* for characters"),
        ("sentencepiece-bpe", {"vocab_size": 262}, "alphabet keeps fewer characters"),
        ("bpe", {"vocab_size": 400, "keep": ("ab", "ab")}, "kept token 'ab' is named twice"),
        ("bpe", {"vocab_size": 400, "keep": ("<|pad|>",)}, "can't be a special token and a kept"),
        ("bpe", {"vocab_size": 400, "keep": ("<|reserved_0|>",), "reserve": 1}, "can't be a res"),
        ("bpe", {"vocab_size": 400, "keep": ("",)}, "kept token '' is no text"),
        ("bpe", {"vocab_size": 400, "keep": ("\ud800",)}, "is no text"),
        ("bpe", {"vocab_size": 400, "alphabet": 9}, "always has all 256 bytes"),
        ("bpe", {"vocab_size": 400, "reserve": -1}, "reserve = -1: a number from 0 up"),
        ("wordpiece", {"vocab_size": 400, "special_tokens": ("<s>",)}, r"needs \[UNK\] among"),
        ("wordpiece", {"vocab_size": 400, "pattern": "bert-case"}, "did you mean 'bert-cased'"),
        ("unigram", {"vocab_size": 400, "pattern": "gpt2"}, "unknown pattern for this kind"),
    ],
)
def test_bad_settings_are_named(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_on(["some text"], kind, Wanted(**options))


def test_an_unknown_kind() -> None:
    with pytest.raises(UserError, match="unknown trainer 'wordpeice': did you mean 'wordpiece'"):
        trainer_for("wordpeice")


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece-bpe", "wordpiece"])
@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text(kind: str, texts: list[str]) -> None:
    with pytest.raises(UserError, match="no text to learn a tokenizer from"):
        train_on(texts, kind, Wanted(vocab_size=500))
