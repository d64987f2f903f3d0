"""Words as numbers: characters become the first symbols that merges are learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmworks.tokenizers.word_counts import WordCounts

_AT_ONCE = 1 << 18  # words


class Characters:
    """The characters of counted words, how often each occurs, and which are kept."""

    def __init__(self, words: WordCounts) -> None:
        """`words`: bytes of valid UTF-8."""
        starts = (words.data & 0xC0) != 0x80
        self.codes = np.frombuffer(words.data.tobytes().decode().encode("utf-32-le"), np.uint32)
        self.ends = np.cumsum(starts, dtype=np.int64)[words.ends - 1]  # int64 [words]
        self.counts = words.counts
        self.left_out = words.left_out
        sizes = np.diff(self.ends, prepend=0)
        self.begins = np.zeros(len(self.codes), dtype=bool)  # bool [characters]
        self.begins[self.ends - sizes] = True
        totals = np.zeros(0x110000)
        for first in range(0, len(sizes), _AT_ONCE):
            words_here = slice(first, first + _AT_ONCE)
            begin = self.ends[first] - sizes[first]
            codes = self.codes[begin : self.ends[words_here][-1]]
            times = np.repeat(words.counts[words_here], sizes[words_here])
            totals += np.bincount(codes, times, len(totals))
        self.found = np.flatnonzero(totals)  # code points, in order
        self.frequency = totals[self.found].astype(np.int64)

    def kept(self, limit: float) -> list[str]:
        """The alphabet, in the order of code points.

        Args:
            limit: from 1: so many, the most frequent ones; below: the fewest that make up this
                share of the text; 0: all. Of equals, the smaller code point is kept.
        """
        order = np.lexsort((self.found, -self.frequency))
        if limit >= 1:
            order = order[: int(limit)]
        elif limit > 0:
            share = np.cumsum(self.frequency[order]) / max(1, self.frequency.sum())
            order = order[: int(np.searchsorted(share, limit - 1e-12)) + 1]
        return [chr(code) for code in np.sort(self.found[order])]

    def inside(self) -> set[str]:
        """Characters that stand inside a word, not at its beginning."""
        return {chr(code) for code in np.unique(self.codes[~self.begins])}

    def symbols(
        self, ids: dict[str, int], inside: dict[str, int] | None = None, *, apart: bool
    ) -> WordCounts:
        """Words as int32 symbols.

        Args:
            ids: the id of a character.
            inside: the id of one that is not the word's first; None: the same.
            apart: a character without an id parts a word in two; else its neighbours meet.
        """
        found = _table(ids)[self.codes]
        if inside is not None:
            found = np.where(self.begins, found, _table(inside)[self.codes])
        keep = found >= 0
        if keep.all():
            return WordCounts(found, self.ends, self.counts, self.left_out)
        begins, counts = self.begins, np.repeat(self.counts, np.diff(self.ends, prepend=0))
        if apart:  # what follows a gap begins a word
            begins = begins | np.append(False, ~keep[:-1])
            return _words(found[keep], counts[keep], begins[keep])
        number = np.cumsum(begins)[keep]
        first = np.diff(number, prepend=0) > 0
        return _words(found[keep], counts[keep], first)

    def only(self, alphabet: Sequence[str]) -> WordCounts:
        """Words as bytes again, parted at every character that is not in the alphabet."""
        places = {character: ord(character) for character in alphabet}
        words = self.symbols(places, apart=True)
        codes = words.data.astype(np.int64)
        widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
        data = words.data.astype("<u4").tobytes().decode("utf-32-le").encode()
        ends = np.cumsum(widths, dtype=np.int64)[words.ends - 1]
        return WordCounts(np.frombuffer(data, np.uint8), ends, words.counts, words.left_out)


def _table(ids: dict[str, int]) -> Any:
    """int32 [code points]: -1 where there is no id."""
    table = np.full(0x110000, -1, dtype=np.int32)
    for character, token_id in ids.items():
        table[ord(character)] = token_id
    return table


def _words(symbols: Any, counts: Any, begins: Any) -> WordCounts:
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(symbols)).astype(np.int64)
    return WordCounts(symbols, ends[: len(starts)], counts[starts])
