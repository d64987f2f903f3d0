"""Counting in bounded memory, and merges learnt by kernels."""

from __future__ import annotations

import random
from collections import Counter
from pydoc_data.topics import topics

import pytest

from lmworks.tokenizers import bpe_trainer, compiled_trainer
from lmworks.tokenizers.patterns import PATTERNS
from lmworks.tokenizers.pre_tokenizers import Cut, PreTokenizer
from lmworks.tokenizers.vocabulary import alphabet_bytes
from lmworks.tokenizers.word_counts import WordCounter, count_words

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


def test_runs_of_one_letter_and_tokens_that_are_there_already() -> None:
    words = count_words(["aaaa aaaaaaa aa aaaaa" * 9, "abab" * 20, "ab ab"], (Cut(r"[a-z]+"),))
    alphabet = [bytes([byte]) for byte in range(256)]
    ours, theirs = [*alphabet, b"aaa"], [*alphabet, b"aaa"]
    merges = compiled_trainer.learn_merges(words, ours, vocab_size=270, min_frequency=1)
    counted = {word.decode(): count for word, count in words.items()}
    assert merges == bpe_trainer.learn_merges(counted, theirs, vocab_size=270, min_frequency=1)
    assert ours == theirs
