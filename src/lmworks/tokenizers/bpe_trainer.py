"""Learning merges from counted words: the trainer's heart.

The same merges as Hugging Face's trainer, ties included: the most frequent pair first, of equals
the one with the smaller ids. Counts are kept up to date merge by merge, so the cost follows the
words that a merge touches, not the corpus.

Source: Sennrich et al. 2016, arXiv 1508.07909, algorithm 1.
Checked: Hugging Face tokenizers 0.23, equal merges, tests/tokenizers/test_train_tokenizer.py.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lmworks.core.progress import track

Pair = tuple[int, int]


def learn_merges(
    words: Mapping[str, int] | Iterable[tuple[Sequence[int], int]],
    tokens: list[bytes],
    *,
    vocab_size: int,
    min_frequency: int,
    protected: int = 0,
    prefix: bytes = b"",
    longest: int = 0,
) -> list[Pair]:
    """Append merged tokens to `tokens` until there are `vocab_size`, or nothing left to merge.

    Args:
        words: how often each word occurs; a word is a text, or ids of its first symbols.
        tokens: what there is already, the 256 single bytes among them if words are texts; index =
            id.
        protected: the first so many tokens are none that a merge may lead to.
        prefix: what the right one of a pair loses when it is joined (`##`).
        longest: characters of a token at most; 0: as many as there are.
    Returns: the merges as pairs of ids, in the order learnt.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    pairs = _PairCounts(_symbols(words, ids) if isinstance(words, Mapping) else words)
    merges: list[Pair] = []
    with track("learning merges", total=vocab_size - len(tokens)) as bar:
        while len(tokens) < vocab_size:
            pair = pairs.most_frequent(at_least=max(1, min_frequency))
            if pair is None:
                break
            joined = tokens[pair[0]] + tokens[pair[1]].removeprefix(prefix)
            merged = ids.get(joined)
            too_long = longest and len(joined.decode("utf-8", "replace")) > longest
            if too_long or (merged is not None and merged < protected):
                pairs.drop(pair)
                continue
            if merged is None:
                merged = ids[joined] = len(tokens)
                tokens.append(joined)
                bar.advance()
            merges.append(pair)
            pairs.merge(pair, merged)
    return merges


def _symbols(words: Mapping[str, int], ids: Mapping[bytes, int]) -> Iterator[tuple[list[int], int]]:
    byte_ids = [ids[bytes([byte])] for byte in range(256)]
    for word, count in words.items():
        yield [byte_ids[b] for b in word.encode("utf-8", "replace")], count


class _PairCounts:
    """How often each pair of neighbours occurs, and in which words.

    The heap may hold counts that are no longer right: they are put right when they come up.
    """

    def __init__(self, words: Iterable[tuple[Sequence[int], int]]) -> None:
        words = list(words)
        self._symbols = [list(word) for word, _ in words]
        self._word_counts = [count for _, count in words]
        self._counts: dict[Pair, int] = defaultdict(int)
        self._words: dict[Pair, set[int]] = defaultdict(set)
        for index, word in enumerate(self._symbols):
            for pair in itertools.pairwise(word):
                self._counts[pair] += self._word_counts[index]
                self._words[pair].add(index)
        self._heap = [(-count, pair) for pair, count in self._counts.items()]
        heapq.heapify(self._heap)

    def most_frequent(self, *, at_least: int) -> Pair | None:
        """The pair to merge next, or None when no pair occurs so often."""
        while self._heap:
            negative, pair = heapq.heappop(self._heap)
            count = self._counts[pair]
            if -negative == count:
                return pair if count >= at_least else None
            if count > 0:
                heapq.heappush(self._heap, (-count, pair))
        return None

    def drop(self, pair: Pair) -> None:
        """Let a pair be: what it leads to may not be a token."""
        self._counts[pair] = 0

    def merge(self, pair: Pair, merged: int) -> None:
        """Merge `pair` to `merged` in every word that has it."""
        raised = set()
        for index in self._words.pop(pair):
            count = self._word_counts[index]
            for changed, change in _merge_word(self._symbols[index], pair, merged):
                self._counts[changed] += change * count
                if change > 0:
                    self._words[changed].add(index)
                    raised.add(changed)
        self._counts[pair] = 0
        for changed in raised:
            heapq.heappush(self._heap, (-self._counts[changed], changed))


def _merge_word(word: list[int], pair: Pair, merged: int) -> list[tuple[Pair, int]]:
    """Merge `pair` in place from left to right; returns which pairs came and went."""
    changes: list[tuple[Pair, int]] = []
    left, right = pair
    at = 0
    while at < len(word) - 1:
        if word[at] == left and word[at + 1] == right:
            if at > 0:
                changes += [((word[at - 1], left), -1), ((word[at - 1], merged), 1)]
            if at + 2 < len(word):
                changes += [((right, word[at + 2]), -1), ((merged, word[at + 2]), 1)]
            word[at : at + 2] = [merged]
        at += 1
    return changes
