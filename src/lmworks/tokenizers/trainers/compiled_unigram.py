"""The lattices of the Unigram trainer over compiled kernels, on all cores.

Suffixes of the words are sorted as deep as a piece may be long; intervals of them are the seeds
and, at the same time, the edges of all lattices, so nothing is ever looked up by its text. Edges
are kept from round to round and those of dropped pieces are taken out.

Words are dealt to a fixed number of parts, whose sums are added in order: what comes out does not
depend on how many threads there are.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lmworks.core.compiled import threads
from lmworks.tokenizers import calls
from lmworks.tokenizers.word_counts import WordCounts

_call = functools.partial(calls.call, module="lmworks.tokenizers.trainers.unigram_kernels")
_PARTS = 8
_WORTH_THREADS = 1 << 16  # edges


class CompiledLattices:
    """`unigram.Lattices`; the ids are those of `ReadableLattices`."""

    def __init__(
        self, words: WordCounts, max_piece_length: int, seed_size: int, min_frequency: int = 2
    ) -> None:
        self._counts = np.ascontiguousarray(words.counts, dtype=np.int64)
        self._longest = max_piece_length
        self._set_symbols(words)
        self._room = int(np.diff(self._starts).max()) + 2
        self._set_seeds(self._substrings(max(2, min_frequency)), seed_size)

    def _substrings(self, least: int) -> _Substrings:
        symbols, sizes = self._symbols, np.diff(self._starts)
        rests = np.repeat(self._starts[1:].astype(np.int32), sizes)
        rests -= np.arange(len(symbols), dtype=np.int32)
        order = sorted_suffixes(symbols, rests, self._longest + 1)
        weights = np.repeat(self._counts, sizes)
        self.weights = np.bincount(symbols, weights)
        return _Substrings(symbols, rests, order, weights, self._longest, least)

    def _set_symbols(self, words: WordCounts) -> None:
        """Characters as numbers in the order of their code points, and where words start."""
        codes = np.frombuffer(words.data.tobytes().decode().encode("utf-32-le"), dtype=np.uint32)
        numbers = np.zeros(0x110000, dtype=np.int32)
        numbers[codes] = 1
        self._alphabet = np.flatnonzero(numbers).astype(np.uint32)
        numbers[self._alphabet] = np.arange(len(self._alphabet))
        self._symbols = numbers[codes]
        ends = np.cumsum((words.data & 0xC0) != 0x80, dtype=np.int64)[words.ends - 1]
        self._starts = np.append(0, ends)
        self.num_characters = len(self._alphabet)
        bounds = np.linspace(0, len(codes), _PARTS + 1)[1:-1]
        places = [0, *np.searchsorted(self._starts, bounds).tolist(), len(ends)]
        self._parts = list(itertools.pairwise(places))

    def _set_seeds(self, found: _Substrings, seed_size: int) -> None:
        chosen = found.heaviest(seed_size)
        ids = np.full(len(found.counts), -1, dtype=np.int32)
        ids[chosen] = np.arange(len(chosen)) + self.num_characters
        places = len(self._symbols)
        self._degrees = np.zeros(places, dtype=np.uint8)
        pieces = (found.order, len(ids), found.firsts, found.lasts, found.lengths, ids)
        text = (self._symbols, places)
        _call("fill_edges", *pieces, *text, np.zeros(0, np.int64), 0, self._degrees)
        ends = np.cumsum(self._degrees, dtype=np.int64)
        self._word_edges = np.append(0, ends[self._starts[1:] - 1])
        self._edges = np.empty(int(ends[-1]), dtype=np.uint32)
        _call("fill_edges", *pieces, *text, ends, self._edges, self._degrees)
        # `ends` has come down to where the edges begin.
        homes = found.order[found.firsts[chosen]]
        first = np.zeros(self.num_characters, dtype=np.int32)
        first[self._symbols[::-1]] = np.arange(places, dtype=np.int32)[::-1]
        self._homes = np.concatenate([first, homes])
        self._home_edges = ends[self._homes]
        self.lengths = np.concatenate([np.ones(len(first), np.int64), found.lengths[chosen]])
        self.weights = np.concatenate([self.weights, found.weights[chosen]])

    def texts(self) -> list[str]:
        """Every piece, by id."""
        characters = self._alphabet[self._symbols].tobytes().decode("utf-32-le")
        places = zip(self._homes.tolist(), self.lengths.tolist())
        return [characters[at : at + size] for at, size in places]

    def keep(self, kept: Any) -> None:
        """Drop the pieces that are False in bool [pieces]; the others close ranks."""
        if kept.all():
            return
        new_ids = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
        self._homes, self.lengths = self._homes[kept], self.lengths[kept]
        self.weights, self._home_edges = self.weights[kept], self._home_edges[kept]
        self._each(
            lambda first, last: _call(
                *("keep_edges", self._edges, self._degrees, self._starts, self._word_edges),
                *(first, last, new_ids, self._homes, self._home_edges),
            ),
            self._parts,
        )

    def expected(self, scores: Any) -> tuple[Any, float]:
        """How often each piece is expected [pieces], and the log-likelihood of all words, nats."""
        probabilities = np.exp(scores)

        def of_part(first: int, last: int) -> tuple[Any, float]:
            found, likelihood = np.zeros(len(scores)), np.zeros(1)
            room = [np.empty(self._room) for _ in range(2)]
            _call(
                *("expected", *self._words(first, last), probabilities, self._longest, *room),
                *(np.empty(self._room, dtype=np.int64), found, likelihood),
            )
            return found, float(likelihood[0])

        parts = self._each(of_part, self._parts)
        return sum(part for part, _ in parts), sum(part for _, part in parts)

    def best_counts(self, scores: Any) -> Any:
        """int64 [pieces]: how often each piece is on the best paths."""

        def of_part(first: int, last: int) -> Any:
            found = np.zeros(len(scores), dtype=np.int64)
            room = np.empty(self._room), np.empty(self._room, dtype=np.uint32)
            _call("best_counts", *self._words(first, last), scores, *room, found)
            return found

        return sum(self._each(of_part, self._parts))

    def losses(self, scores: Any, counts: Any) -> Any:
        """float64 [pieces]: as `Lattices` says."""
        found = np.empty(len(scores))

        def of_part(first: int, last: int) -> None:
            room = np.empty(self._room), np.empty(self._room, dtype=np.uint32)
            _call(
                *("losses", self._edges, self._degrees, self._homes, self._home_edges),
                *(self.lengths, first, last, scores, counts, *room, found, len(scores)),
            )

        bounds = np.linspace(0, len(scores), _PARTS + 1).astype(int).tolist()
        self._each(of_part, list(itertools.pairwise(bounds)))
        return found

    def _words(self, first: int, last: int) -> tuple[Any, ...]:
        lattices = (self._edges, self._degrees, self._starts, self._word_edges, self._counts)
        return (*lattices, first, last)

    def _each(self, run: Callable[[int, int], Any], parts: list[tuple[int, int]]) -> list[Any]:
        """What `run` says to each part; the kernels let go of the GIL."""
        if len(self._edges) < _WORTH_THREADS or threads() == 1:
            return [run(*part) for part in parts]
        with ThreadPoolExecutor(threads()) as pool:
            return list(pool.map(lambda part: run(*part), parts))


class _Substrings:
    """Substrings that may be seeds, as intervals of the sorted suffixes."""

    def __init__(
        self, symbols: Any, rests: Any, order: Any, weights: Any, longest: int, least: int
    ) -> None:
        self.order = order
        total = np.append(0, np.cumsum(weights[order]))
        stack = [np.zeros(longest + 3, dtype=np.int64) for _ in range(2)]
        given = (symbols, rests, order, len(order), longest, least, total, *stack)
        self._allocate(0)
        room = _call("substrings", *given, *self._found, 0)
        self._allocate(room)
        _call("substrings", *given, *self._found, room)
        self.weights = self.counts * self.lengths

    def _allocate(self, room: int) -> None:
        self.firsts, self.lasts = np.empty(room, np.int32), np.empty(room, np.int32)
        self.lengths, self.counts = np.empty(room, np.uint8), np.empty(room, np.int64)
        self._found = (self.firsts, self.lasts, self.lengths, self.counts)

    def heaviest(self, number: int) -> Any:
        """Those with the most characters of text, in the order of their texts."""
        chosen = np.arange(len(self.counts))
        if len(chosen) > number:
            place = len(chosen) - number
            least = np.partition(self.weights, place)[place]
            equal = self._sorted(np.flatnonzero(self.weights == least))
            above = np.flatnonzero(self.weights > least)
            chosen = np.concatenate([above, equal[: number - len(above)]])
        return self._sorted(chosen)

    def _sorted(self, chosen: Any) -> Any:
        return chosen[np.lexsort((self.lengths[chosen], self.firsts[chosen]))]


def sorted_suffixes(symbols: Any, rests: Any, depth: int) -> Any:
    """Places in the order of the text from there to the end of the word; int32 [places].

    Args:
        symbols: numbers of the characters.
        rests: characters from each place to the end of its word.
        depth: characters that count at least.
    As many characters as 64 bits hold are compared at once; then the rank of so many takes the
    place of a character.
    """
    values, reach = symbols.astype(np.uint64) + np.uint64(1), 1
    while True:
        width = int(values.max()).bit_length()
        times = min(64 // width, -(-depth // reach))
        keys = values.copy()
        for number in range(1, times):
            keys <<= np.uint64(width)
            shift = number * reach
            keys[:-shift] |= np.where(rests[:-shift] > shift, values[shift:], np.uint64(0))
        order = np.argsort(keys)
        reach *= times
        if reach >= depth:
            return order.astype(np.int32)
        keys = keys[order]
        ranks = np.cumsum(np.append(True, keys[1:] != keys[:-1]), dtype=np.uint64)
        values[order] = ranks
