"""Sampled cuts: the text comes back, the distributions are exact, a seed gives one cut."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.cli.encode import command
from lmworks.core.errors import UserError
from lmworks.tokenizers.bpe import BPE
from lmworks.tokenizers.merging import merge
from lmworks.tokenizers.subword_regularization import (
    SubwordSampler,
    best_cuts,
    bpe_dropout,
    max_match_dropout,
    merge_with_dropout,
)
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_on
from lmworks.tokenizers.trainers.base import Wanted
from lmworks.tokenizers.unigram import Unigram
from lmworks.tokenizers.wordpiece import WordPiece

Cut = tuple[int, ...]
TEXTS = [text for _, text in sorted(topics.items())]
KINDS = ("bpe", "sentencepiece-bpe", "unigram", "wordpiece")


@functools.cache
def tokenizer(kind: str) -> PipelineTokenizer:
    return train_on(TEXTS[:40], kind, Wanted(vocab_size=1200))


def fits(drawn: Counter[Any], probabilities: Mapping[Any, float]) -> None:
    """Pearson's chi-square at about 1 in a million, cuts that are rare taken together."""
    size = drawn.total()
    assert set(drawn) <= {cut for cut, p in probabilities.items() if p > 0}
    often = [cut for cut, p in probabilities.items() if size * p >= 8]
    observed = [drawn[cut] for cut in often]
    expected = [size * probabilities[cut] for cut in often]
    observed.append(size - sum(observed))
    expected.append(size - sum(expected))
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected) if e > 1)
    freedom = max(1, len(often) - 1)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 12, (statistic, freedom)
    assert len(often) > 1


def sampled(draw_one: Callable[[random.Random], Hashable], size: int = 8000) -> Counter[Any]:
    draw = random.Random(17)
    return Counter(draw_one(draw) for _ in range(size))


# The text comes back, and a seed gives one cut.


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_cuts_are_the_same_text(kind: str, hard: list[str]) -> None:
    ours = tokenizer(kind)
    sampler = SubwordSampler(ours)
    different = 0
    for number, text in enumerate([*hard[::20], TEXTS[50]]):
        ids, plain = sampler.encode(text, seed=number), ours.encode_readable(text)
        assert ours.decode(ids) == ours.decode(plain), repr(text)
        different += ids != plain
    assert different > 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_one_cut(kind: str) -> None:
    ours, text = tokenizer(kind), TEXTS[51][:600]
    cuts = [ours.encode_sampled(text, seed=seed) for seed in (1, 1, 2)]
    assert cuts[0] == cuts[1] != cuts[2]
    sampler = SubwordSampler(ours)
    assert [sampler.encode(text, seed=seed) for seed in (2, 1)] == [cuts[2], cuts[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_cut_is_one_end_of_the_setting(kind: str, hard: list[str]) -> None:
    ours = tokenizer(kind)
    setting = {"alpha": 1e6} if kind == "unigram" else {"dropout": 0.0}
    sampler, model = SubwordSampler(ours, **setting), ours.vocabulary.model
    for text in [*hard[::40], TEXTS[52]]:
        found, expected = sampler.encode(text, seed=3), ours.encode_readable(text)
        if isinstance(model, Unigram):  # equally probable cuts are drawn alike
            scores = [sum(model.scores[i] for i in ids) for ids in (found, expected)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-4)
        else:
            assert found == expected


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece-bpe", "wordpiece"])
def test_the_other_end_leaves_single_symbols(kind: str) -> None:
    ours = tokenizer(kind)
    ids = ours.encode_sampled("unbelievable stories", dropout=1.0, seed=0)
    size = len("unbelievablestories" if kind == "wordpiece" else "unbelievable stories")
    assert len(ids) == size


@pytest.mark.parametrize("kind", KINDS)
def test_words_without_end_and_bytes(kind: str) -> None:
    ours, text = tokenizer(kind), "unbelievable" * 2000
    assert ours.decode(ours.encode_sampled(text, seed=4)) == ours.decode(ours.encode(text))
    data = b"caf\xc3\xa9 \xff\x00 \xe2\x82"
    assert ours.decode(ours.encode_sampled(data, seed=4)) == ours.decode(ours.encode(data))


def test_special_tokens_stay_whole() -> None:
    ours = tokenizer("bpe")
    token = ours.special_tokens["<|endoftext|>"]
    options: dict[str, Any] = {"dropout": 1.0, "seed": 0}
    assert ours.encode_sampled("a<|endoftext|>", allow_special=True, **options)[1:] == [token]
    assert len(ours.encode_sampled("a<|endoftext|>", **options)) == 14


# Distributions, against every cut with its probability.


def all_cuts(model: Unigram, piece: str) -> dict[Cut, float]:
    """Log-probabilities of all cuts."""
    if not piece:
        return {(): 0.0}
    return {
        (token, *rest): model.scores[token] + score
        for token, text in enumerate(model.tokens)
        if text and piece.startswith(text.decode())
        for rest, score in all_cuts(model, piece[len(text.decode()) :]).items()
    }


def random_unigram(draw: random.Random) -> Unigram:
    texts = ["a", "b", "c", *draw.sample(["ab", "bc", "ca", "bb", "abc", "cab", "abba"], 5)]
    return Unigram(
        tokens=tuple(text.encode() for text in texts),
        scores=tuple(-draw.uniform(1, 3) for _ in texts),
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 2.5])
def test_unigram_cuts_have_their_probabilities(alpha: float) -> None:
    draw = random.Random(int(10 * alpha))
    for _ in range(4):
        model, piece = random_unigram(draw), "abcabba"
        assert model.sample(piece, alpha=alpha, draw=random.Random(3)) == model.drawn(
            piece, model.endings(piece, alpha=alpha).__getitem__, random.Random(3)
        )
        weights = {cut: math.exp(alpha * s) for cut, s in all_cuts(model, piece).items()}
        total = sum(weights.values())
        endings = model.endings(piece, alpha=alpha).__getitem__
        drawn = sampled(lambda d, m=model, e=endings: tuple(m.drawn("abcabba", e, d)))
        fits(drawn, {cut: weight / total for cut, weight in weights.items()})


def dropout_cuts(symbols: Cut, ranks: Mapping[Any, tuple[int, int]], p: float) -> dict[Cut, float]:
    """Every result of algorithm 1 of the paper, with its probability."""
    possible = sorted(
        (ranks[pair][0], at) for at, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks
    )
    found = {symbols: p ** len(possible)}
    for left_out, (_, at) in enumerate(possible):
        pair = symbols[at], symbols[at + 1]
        merged = (*symbols[:at], ranks[pair][1], *symbols[at + 2 :])
        for cut, probability in dropout_cuts(merged, ranks, p).items():
            found[cut] = found.get(cut, 0.0) + p**left_out * (1 - p) * probability
    return found


def random_ranks(draw: random.Random) -> dict[tuple[int, int], tuple[int, int]]:
    ranks: dict[tuple[int, int], tuple[int, int]] = {}
    while len(ranks) < 12:
        pair = draw.randrange(2 + len(ranks)), draw.randrange(2 + len(ranks))
        ranks.setdefault(pair, (len(ranks), 2 + len(ranks)))
    return ranks


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.8])
def test_bpe_dropout_has_the_probabilities_of_the_paper(dropout: float) -> None:
    draw = random.Random(int(100 * dropout))
    for _ in range(5):
        ranks = random_ranks(draw)
        symbols = draw.choices((0, 1), k=7)
        expected = dropout_cuts(tuple(symbols), ranks, dropout)
        if len(expected) > 1:
            fits(
                sampled(lambda d, s=symbols, r=ranks: tuple(merge_with_dropout(s, r, dropout, d))),
                expected,
            )


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 1), max_size=40), st.integers(0, 1000))
def test_without_dropout_it_is_merging(symbols: list[int], seed: int) -> None:
    ranks = random_ranks(random.Random(seed))
    assert merge_with_dropout(symbols, ranks, 0.0, random.Random(0)) == merge(symbols, ranks)


# Each word's merges follow from one another, so that Hugging Face's queue is never out of date.
CHAIN = {"ab": ("a", "b"), "abc": ("ab", "c"), "abcd": ("abc", "d"), "dd": ("d", "d")}


@pytest.mark.parametrize("dropout", [0.2, 0.6])
def test_bpe_dropout_is_that_of_hugging_face(dropout: float) -> None:
    import tokenizers

    texts = ["a", "b", "c", "d", *CHAIN]
    ids = {text: i for i, text in enumerate(texts)}
    theirs = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=ids, merges=list(CHAIN.values()), dropout=dropout)
    )
    model = BPE(
        tokens=tuple(text.encode() for text in texts),
        merges=tuple((ids[left], ids[right]) for left, right in CHAIN.values()),
        byte_level=False,
    )
    for word in ("abcd", "abcabcd", "cdd"):
        ours = sampled(lambda d, w=word: tuple(bpe_dropout(model, w, dropout, d)), 20_000)
        other = Counter(tuple(theirs.encode(word).ids) for _ in range(20_000))
        assert set(ours) == set(other)
        fits(other, dropout_cuts(tuple(ids[c] for c in word), model.ranked, dropout))
        assert all(abs(ours[cut] - other[cut]) < 6 * math.sqrt(2 * 20_000 / 4) for cut in ours)


def matches(model: WordPiece, piece: str, start: int, p: float) -> dict[Cut, float]:
    """Every cut with its probability: the longest of those kept, the shortest always kept."""
    if start == len(piece):
        return {(): 1.0}
    found: dict[Cut, float] = {}
    prefix, left = "##" if start else "", 1.0
    rests = {
        end: matches(model, piece, end, p)
        for end in range(len(piece), start, -1)
        if prefix + piece[start:end] in model.by_text
    }
    ends = [end for end, rest in rests.items() if rest]
    for end in ends:
        chosen = left * (1 - p if end != ends[-1] else 1.0)
        left -= chosen
        for cut, probability in rests[end].items():
            ids = (model.by_text[prefix + piece[start:end]], *cut)
            found[ids] = found.get(ids, 0.0) + chosen * probability
    return found


@pytest.mark.parametrize("dropout", [0.1, 0.6])
def test_max_match_dropout_has_its_probabilities(dropout: float) -> None:
    # "##d" is missing: "abc", or "ab" and "##c", would leave it over.
    texts = ["[UNK]", "a", "ab", "abc", "abcd", "##b", "##c", "##bc", "##cd", "##bcd"]
    model = WordPiece(tokens=tuple(text.encode() for text in texts), unk_id=0)
    expected = matches(model, "abcd", 0, dropout)
    assert len(expected) == 4 and sum(expected.values()) == pytest.approx(1)
    fits(sampled(lambda draw: tuple(max_match_dropout(model, "abcd", dropout, draw))), expected)
    draw = random.Random(0)
    assert max_match_dropout(model, "abx", dropout, draw) == [0]
    assert {tuple(max_match_dropout(model, "ab", 1.0, draw)) for _ in range(9)} == {(1, 5)}


# The most probable cuts.


def test_best_cuts_are_the_best_of_all() -> None:
    draw = random.Random(4)
    for _ in range(20):
        model, piece = random_unigram(draw), "".join(draw.choices("abc", k=9))
        ranked = sorted(all_cuts(model, piece).items(), key=lambda cut: -cut[1])
        for number in (1, 4, 10**6):
            found = model.best_cuts(piece, number)
            assert [s for s, _ in found] == pytest.approx([s for _, s in ranked[:number]])
            assert len({tuple(ids) for _, ids in found}) == len(found)


def test_best_cuts_of_a_text() -> None:
    ours, text = tokenizer("unigram"), "the class of\nan unbelievable object"
    found = best_cuts(ours, text, 30)
    assert found[0][0] == ours.encode_readable(text)
    assert [score for _, score in found] == sorted((s for _, s in found), reverse=True)
    assert len({tuple(ids) for ids, _ in found}) == 30
    assert {ours.decode(ids) for ids, _ in found} == {text}
    scores = ours.vocabulary.model.scores  # type: ignore[union-attr]
    assert found[7][1] == pytest.approx(sum(scores[i] for i in found[7][0]))
    assert best_cuts(ours, text, 3) == found[:3]


def test_a_piece_of_many_characters() -> None:
    model = random_unigram(random.Random(1))
    piece = "".join(random.Random(2).choices("abc", k=20_000))
    assert len(model.sample(piece, alpha=0.5, draw=random.Random(0))) > 5_000
    assert model.best_cuts(piece, 2)[0][1] == model.encode_piece(piece)
    ranks = {(0, 1): (0, 2), (2, 2): (1, 3)}
    merged = merge_with_dropout([0, 1] * 50_000, ranks, 0.5, random.Random(0))
    assert 25_000 < len(merged) < 50_000 and sum((1, 1, 2, 4)[i] for i in merged) == 100_000


# Settings.


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("unigram", {"dropout": 0.1}, "dropout = 0.1 has no meaning here: a Unigram model"),
        ("bpe", {"alpha": 0.1}, "alpha = 0.1 has no meaning here: a BPE model"),
        ("wordpiece", {"alpha": 0.1}, "a WordPiece model is sampled with dropout"),
        ("bpe", {"dropout": 1.5}, "dropout = 1.5: a number from 0 to 1"),
        ("unigram", {"alpha": -1.0}, "alpha = -1.0: a number from 0"),
        ("unigram", {"alpha": math.nan}, "alpha = nan: a number from 0"),
    ],
)
def test_bad_settings_are_named(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokenizer(kind).encode_sampled("text", seed=0, **options)


def test_only_probabilities_can_be_ordered() -> None:
    with pytest.raises(UserError, match="only a Unigram model"):
        best_cuts(tokenizer("bpe"), "text", 3)
    with pytest.raises(UserError, match="0 cuts: ask for one or more"):
        best_cuts(tokenizer("unigram"), "text", 0)


def test_the_command(tmp_path: Path) -> None:
    ours, text = tokenizer("unigram"), "unbelievable objects"
    ours.save(tmp_path)

    def run(*options: str) -> list[str]:
        result = CliRunner().invoke(command, [str(tmp_path), text, *options])
        if result.exception is not None:
            raise result.exception
        return result.output.splitlines()

    lines = run("--sample", "3", "--seed", "5", "--ids", "--alpha", "0.2")
    expected = [ours.encode_sampled(text, seed=seed, alpha=0.2) for seed in (5, 6, 7)]
    assert [[int(i) for i in line.split()] for line in lines] == expected
    shown = run("--sample", "1")[0]
    assert shown.replace(" ", "").replace("▁", " ") == text
    best = run("--best", "2")
    assert len(best) == 2 and all(" nats  " in line for line in best)
    assert run("--best", "1", "--ids") == [" ".join(map(str, ours.encode(text)))]
    for options in (
        ("--alpha", "1"),
        ("--sample", "2", "--best", "2"),
        ("--sample", "2", "--dropout", "1"),
    ):
        with pytest.raises(UserError):
            run(*options)
