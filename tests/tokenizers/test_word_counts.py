"""Counting in bounded memory, and merges learnt by kernels."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest

from lmworks.core.errors import UserError
from lmworks.tokenizers import bpe_trainer, compiled_trainer, counting_threads
from lmworks.tokenizers.counting_threads import ThreadedCounter
from lmworks.tokenizers.patterns import PATTERNS
from lmworks.tokenizers.pre_tokenizers import Cut, PreTokenizer
from lmworks.tokenizers.vocabulary import alphabet_bytes
from lmworks.tokenizers.word_counts import WordCounter, WordCounts, count_words

TEXTS = [text for _, text in sorted(topics.items())]


def some_texts() -> list[str]:
    draw = random.Random(2)
    return [text[:3000] + " ".join(str(draw.random()) for _ in range(300)) for text in TEXTS[:80]]


@pytest.mark.parametrize("pattern", ["gpt2", "deepseek"])
@pytest.mark.parametrize("budget", [1 << 21, 1 << 29])
def test_counts_are_right_whatever_the_memory(pattern: str, budget: int) -> None:
    cuts = tuple(map(Cut, PATTERNS[pattern]))
    texts = [*some_texts(), "", "é你好 \ud800"]
    expected = Counter(
        word.encode("utf-8", "replace")
        for text in texts
        for word in PreTokenizer(cuts=cuts).words(text.encode("utf-8", "replace").decode())
    )
    found = count_words(texts, cuts, budget=budget)
    assert dict(found.items()) == expected and found.left_out == 0


@pytest.mark.parametrize("budget", [1 << 21, 1 << 29])
def test_rare_words_are_left_out_and_counted(budget: int) -> None:
    cuts = (Cut(PATTERNS["gpt2"][0]),)
    counter = WordCounter(cuts, budget=budget)
    for text in some_texts():
        counter.add(text)
    found = counter.finish(most=20_000)
    whole = count_words(some_texts(), cuts)
    assert len(found.data) <= 20_000 and found.left_out > 0
    assert found.left_out + found.counts.sum() == whole.counts.sum()
    kept, all_words = dict(found.items()), dict(whole.items())
    least = min(kept.values())
    assert kept == {word: count for word, count in all_words.items() if count >= least}


@pytest.mark.parametrize("budget", [1 << 21, 1 << 29])
def test_two_threads_count_the_same(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = (Cut(PATTERNS["gpt2"][0]),)
    expected = dict(count_words(some_texts(), cuts).items())
    found = []
    for batch in (1 << 30, 5000, 5000):
        monkeypatch.setattr(counting_threads, "_BATCH", batch)
        counter = ThreadedCounter(cuts, budget=budget)
        for text in some_texts():
            counter.add(text)
        found.append(list(counter.finish().items()))
        assert dict(found[-1]) == expected
    assert found[1] == found[2]  # in the same order


def test_two_threads_go_on_from_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting_threads, "_BATCH", 5000)
    cuts, texts = (Cut(PATTERNS["gpt2"][0]),), some_texts()
    counter = ThreadedCounter(cuts, folder=tmp_path)
    for text in texts[:30]:
        counter.add(text)
    runs = counter.checkpoint()
    for text in texts[:9]:
        counter.add(text)  # of this nothing is kept
    again = ThreadedCounter(cuts, folder=tmp_path, runs=runs)
    for text in texts[30:]:
        again.add(text)
    assert dict(again.finish().items()) == dict(count_words(texts, cuts).items())


def test_an_error_in_a_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting_threads, "_BATCH", 1)
    counter = ThreadedCounter((Cut(r"a(?:a*b)?"),))
    counter.add("a" * 200_000)
    with pytest.raises(UserError, match="takes time with the square"):
        counter.finish()


def test_weights() -> None:
    counter = WordCounter((Cut(PATTERNS["gpt2"][0]),))
    counter.add("a b", times=3)
    counter.add("a")
    assert dict(counter.finish().items()) == {b"a": 4, b" b": 3}


@pytest.mark.parametrize("sizes", [(700, 2), (3000, 2), (1200, 40)])
def test_the_merges_of_the_readable_trainer(sizes: tuple[int, int]) -> None:
    vocab_size, min_frequency = sizes
    words = count_words(TEXTS[::3], (Cut(PATTERNS["gpt2"][0]),))
    alphabet = [bytes([byte]) for byte in alphabet_bytes().values()]
    ours, theirs = [b"<s>", *alphabet], [b"<s>", *alphabet]
    options = {"vocab_size": vocab_size, "min_frequency": min_frequency}
    merges = compiled_trainer.learn_merges(words, ours, **options)
    counted = {word.decode(): count for word, count in words.items()}
    assert merges == bpe_trainer.learn_merges(counted, theirs, **options)
    assert ours == theirs


@pytest.mark.parametrize("room", [1 << 4, 1 << 16])
def test_random_words_give_the_merges_of_the_readable_trainer(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few letters, so that many merges lead to one token, and pairs too rare to be kept come up."""
    monkeypatch.setattr(compiled_trainer, "_ROOM", room)
    draw = random.Random(room)
    for _ in range(150):
        letters = draw.choice(["ab", "abc", "a"])
        tokens = [b"<s>", b"##", *(c.encode() for c in letters), b"#a", b"#b"]
        tokens += [b"ab" * 2, b"abb", b"aa"]
        first = list(range(2, 4 + len(letters)))
        words = [
            ([draw.choice(first) for _ in range(draw.randrange(1, 30))], draw.randrange(1, 9))
            for _ in range(draw.randrange(1, 60))
        ]
        options: dict[str, Any] = {
            "vocab_size": len(tokens) + draw.randrange(60),
            "min_frequency": draw.randrange(12),
            "protected": draw.choice([0, 2, len(tokens) - 1]),
            "prefix": draw.choice([b"", b"#"]),
            "longest": draw.choice([0, 5]),
        }
        ours, theirs = list(tokens), list(tokens)
        found = WordCounts(
            np.array([i for word, _ in words for i in word], dtype=np.int32),
            np.cumsum([len(word) for word, _ in words], dtype=np.int64),
            np.array([count for _, count in words], dtype=np.int64),
        )
        merges = compiled_trainer.learn_merges(found, ours, **options)
        assert merges == bpe_trainer.learn_merges(words, theirs, **options)
        assert ours == theirs


def test_runs_of_one_letter_and_tokens_that_are_there_already() -> None:
    words = count_words(["aaaa aaaaaaa aa aaaaa" * 9, "abab" * 20, "ab ab"], (Cut(r"[a-z]+"),))
    alphabet = [bytes([byte]) for byte in range(256)]
    ours, theirs = [*alphabet, b"aaa"], [*alphabet, b"aaa"]
    merges = compiled_trainer.learn_merges(words, ours, vocab_size=270, min_frequency=1)
    counted = {word.decode(): count for word, count in words.items()}
    assert merges == bpe_trainer.learn_merges(counted, theirs, vocab_size=270, min_frequency=1)
    assert ours == theirs
