"""Learning a Unigram vocabulary: kernels against the oracle, and against SentencePiece."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.tokenizers.pre_tokenizers import build
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.trainers import compiled_unigram
from lmworks.tokenizers.trainers.compiled_unigram import CompiledLattices, sorted_suffixes
from lmworks.tokenizers.trainers.unigram import (
    ReadableLattices,
    digamma,
    learn_from,
    learn_unigram,
)
from lmworks.tokenizers.unigram import Unigram
from lmworks.tokenizers.vocabulary import AddedToken, Step, Vocabulary
from lmworks.tokenizers.word_counts import WordCounts, count_words

TEXTS = [text for _, text in sorted(topics.items())]
METASPACE: Step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}


def counted(words: Mapping[str, int]) -> WordCounts:
    data = [word.encode() for word in words]
    return WordCounts(
        np.frombuffer(b"".join(data), dtype=np.uint8),
        np.cumsum([len(word) for word in data], dtype=np.int64),
        np.array(list(words.values()), dtype=np.int64),
    )


def words_of(texts: Iterable[str]) -> WordCounts:
    steps = build(METASPACE)
    lines = (" ".join(line.split()) for text in texts for line in text.splitlines())
    return count_words((steps.change(line) for line in lines), steps.cuts)


SMALL = words_of(TEXTS[:6])


def same_lattices(
    words: WordCounts, *, longest: int = 16, seeds: int = 10**6, least: int = 2
) -> None:
    """Every answer of the kernels is the oracle's, before and after pieces are dropped."""
    given = (words, longest, seeds, least)
    ours, oracle = CompiledLattices(*given), ReadableLattices(*given)
    draw = np.random.default_rng(3)
    for _ in range(3):
        assert ours.texts() == oracle.texts()
        assert ours.lengths.tolist() == oracle.lengths.tolist()
        assert ours.weights.tolist() == oracle.weights.tolist()
        scores = np.log(ours.weights / ours.weights.sum()) - draw.random(len(ours.weights))
        (found, likelihood), (expected, right) = ours.expected(scores), oracle.expected(scores)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * words.counts.sum())
        assert likelihood == pytest.approx(right, rel=1e-11)
        counts = ours.best_counts(scores)
        assert counts.tolist() == oracle.best_counts(scores).tolist()
        np.testing.assert_allclose(
            ours.losses(scores, counts), oracle.losses(scores, counts), rtol=1e-12
        )
        # All cuts alike: which of equals is best shows.
        alike = -0.5 * ours.lengths
        assert ours.best_counts(alike).tolist() == oracle.best_counts(alike).tolist()
        kept = draw.random(len(scores)) < 0.6
        kept[: ours.num_characters] = True
        ours.keep(kept)
        oracle.keep(kept)


@pytest.mark.parametrize(
    ("longest", "seeds", "least"), [(16, 10**6, 2), (16, 700, 0), (4, 10**6, 5), (1, 9, 2)]
)
def test_kernels_are_the_oracle_on_real_text(longest: int, seeds: int, least: int) -> None:
    same_lattices(SMALL, longest=longest, seeds=seeds, least=least)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text("ab▁é你🙂", min_size=1, max_size=12), st.integers(1, 9), min_size=1),
    st.integers(1, 8),
)
def test_kernels_are_the_oracle_on_any_words(words: dict[str, int], longest: int) -> None:
    same_lattices(counted(words), longest=longest)


def test_words_of_thousands_of_characters_do_not_underflow() -> None:
    draw = random.Random(1)
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 600)))
    long = "".join(draw.choices("abc", k=2000)) + rare + "".join(draw.choices("ab", k=1500))
    same_lattices(counted({long: 2, rare: 1, "abab": 10**9}), longest=8)


def test_suffixes_are_sorted_as_deep_as_a_piece_is_long() -> None:
    draw = random.Random(2)
    for alphabet in (2, 300, 70_000):
        words = [[draw.randrange(alphabet) for _ in range(draw.randrange(1, 90))] for _ in "a" * 90]
        rests = np.array([len(w) - i for w in words for i in range(len(w))], dtype=np.int32)
        symbols = np.array([s for word in words for s in word], dtype=np.int32)
        order = sorted_suffixes(symbols, rests, 17).tolist()
        keys = [symbols[at : at + min(17, rests[at])].tolist() for at in order]
        assert sorted(order) == list(range(len(symbols))) and keys == sorted(keys)


def test_the_whole_of_learning_is_the_oracle() -> None:
    for size, options in ((300, {}), (900, {"num_sub_iterations": 1, "shrinking_factor": 0.5})):
        found = learn_unigram(SMALL, vocab_size=size, **options)  # type: ignore[arg-type]
        assert found == learn_from(ReadableLattices(SMALL, 16, 10**6), vocab_size=size, **options)  # type: ignore[arg-type]
        assert len(found[0]) == size


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_unigram, "_WORTH_THREADS", 0)
    words, found = words_of(TEXTS[:30]), []
    for number in (1, 2, 3):
        monkeypatch.setattr(compiled_unigram, "threads", lambda number=number: number)
        found.append(learn_unigram(words, vocab_size=1000))
    assert found[0] == found[1] == found[2]


def test_digamma_is_that_of_torch() -> None:
    import torch

    x = np.concatenate([np.linspace(0.5, 20, 400), np.logspace(1, 12, 50)])
    right = torch.special.digamma(torch.tensor(x, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(digamma(x), right, rtol=1e-11, atol=1e-12)


def test_pieces_are_probable_first_and_probabilities_sum_to_about_one() -> None:
    pieces, scores = learn_unigram(SMALL, vocab_size=500)
    assert scores == sorted(scores, reverse=True)
    assert len(set(pieces)) == 500 and max(map(len, pieces)) <= 16
    assert 0.85 < sum(map(math.exp, scores)) < 1


def test_a_word_that_is_always_whole_becomes_a_piece() -> None:
    pieces, _ = learn_unigram(counted({"▁wholly": 50, "▁ab": 9, "▁ba": 9}), vocab_size=12)
    assert "▁wholly" in pieces


def test_required_pieces_are_always_there() -> None:
    required = ("q", "Ω", "ing", "xyzzy")
    pieces, scores = learn_unigram(SMALL, vocab_size=80, required=required)
    assert set(required) <= set(pieces) and len(pieces) == 80
    assert scores[pieces.index("xyzzy")] == min(scores)


def test_too_little_text_gives_fewer_pieces() -> None:
    pieces, _ = learn_unigram(counted({"abab": 1, "ab": 3}), vocab_size=100)
    assert sorted(pieces) == ["a", "ab", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 2, "required": "abc"}, "vocab_size = 2: at least 3 are needed"),
        ({"vocab_size": 9, "max_piece_length": 300}, "max_piece_length = 300: a number from 1"),
        ({"vocab_size": 9, "shrinking_factor": 1.0}, "shrinking_factor = 1.0: a number between"),
        ({"vocab_size": 9, "seed_size": 1 << 24}, "seed_size = 16777216: a number from 0"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        learn_unigram(SMALL, **options)


def test_no_words_at_all() -> None:
    with pytest.raises(UserError, match="no text to learn"):
        learn_unigram(counted({}), vocab_size=9)


def sentencepiece_model(words: WordCounts, size: int) -> dict[str, float]:
    """Pieces of SentencePiece, which takes counted words as they are."""
    import sentencepiece

    path, model = Path("words.tsv"), io.BytesIO()
    rows = (f"{word.decode()}\t{count}\n" for word, count in words.items())
    path.write_text("".join(rows), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(path),
        input_format="tsv",
        model_writer=model,
        model_type="unigram",
        vocab_size=size + 3,  # <unk>, <s>, </s>
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_number=False,
        minloglevel=2,
    )
    found = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return {found.id_to_piece(i): found.get_score(i) for i in range(3, size + 3)}


def measured(pieces: Mapping[str, float], words: WordCounts) -> tuple[int, float]:
    """Tokens, and nats of the best cuts; a character that no piece covers costs 10 more."""
    model = Unigram(
        tokens=(b"<unk>", *(piece.encode() for piece in pieces)),
        scores=(0.0, *pieces.values()),
        unk_id=0,
    )
    tokens, nats = 0, 0.0
    for word, count in words.items():
        ids = model.encode_piece(word.decode())
        tokens += count * len(ids)
        nats -= count * sum(model.unknown_score if i == 0 else model.scores[i] for i in ids)
    return tokens, nats


def test_heldout_text_is_as_short_and_as_likely_as_with_sentencepiece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, heldout = words_of(TEXTS[::2]), words_of(TEXTS[1::2])
    alphabet = sorted({c for word, _ in words.items() for c in word.decode()})
    ours = dict(zip(*learn_unigram(words, vocab_size=2000, required=alphabet)))
    theirs = sentencepiece_model(words, 2000)
    assert len(ours) == len(theirs) == 2000
    (tokens, nats), (their_tokens, their_nats) = measured(ours, heldout), measured(theirs, heldout)
    print(f"tokens {tokens / their_tokens:.4f}, nats {nats / their_nats:.4f} of SentencePiece's")
    assert tokens <= 1.0 * their_tokens and nats <= 1.0 * their_nats


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_what_is_saved_gives_the_same_ids_elsewhere(
    byte_fallback: bool, tmp_path: Path, hard: list[str]
) -> None:
    import tokenizers

    steps = {"type": "Sequence", "normalizers": [{"type": "Nmt"}, {"type": "NFKC"}]}
    pieces, scores = learn_unigram(words_of(TEXTS[:60]), vocab_size=1500)
    first = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256) if byte_fallback)]
    model = Unigram(
        tokens=tuple(text.encode() for text in (*first, *pieces)),
        scores=(*(0.0 for _ in first), *scores),
        unk_id=0,
        byte_fallback=byte_fallback,
    )
    ours = PipelineTokenizer(
        Vocabulary(
            model=model,
            added_tokens=(AddedToken(id=0, text="<unk>"),),
            normalizer=steps,
            pre_tokenizer=METASPACE,
            decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}, METASPACE]},
            unk_token="<unk>",
        )
    )
    ours.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [text for text in hard[::3] if "\ud800" not in text]
    assert [ours.encode(text) for text in texts] == [theirs.encode(text).ids for text in texts]
    assert [ours.encode_array(text).tolist() for text in texts[:800]] == [
        theirs.encode(text).ids for text in texts[:800]
    ]


def test_counts_weigh_words() -> None:
    score = dict(zip(*learn_unigram(counted({"abcd": 300, "xbcy": 200}), vocab_size=20)))
    assert score["abcd"] > score["xbcy"]
    other = dict(zip(*learn_unigram(counted({"abcd": 200, "xbcy": 300}), vocab_size=20)))
    assert other["abcd"] < other["xbcy"]
