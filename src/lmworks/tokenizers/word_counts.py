"""Counting words in bounded memory.

Words and their counts lie in flat arrays that grow as they must, up to a budget. Beyond it, what
was counted is written to disk in the order of the words and counting begins anew; at the end the
runs are merged, and if there are more words than the trainer can hold, the rarest are left out and
the caller is told how many occurrences that were.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.core.progress import say
from lmworks.tokenizers import slots
from lmworks.tokenizers.calls import call, kernel
from lmworks.tokenizers.compiled import cut_levels
from lmworks.tokenizers.pre_tokenizers import Cut

_AT_ONCE = 1 << 22  # bytes given to the kernel in one call


@dataclasses.dataclass(frozen=True)
class WordCounts:
    """Words as bytes, one behind the other, where each ends, and how often each occurs."""

    data: Any  # uint8 [bytes]
    ends: Any  # int64 [words]
    counts: Any  # int64 [words]
    left_out: int = 0  # occurrences of words that found no room

    def __len__(self) -> int:
        return len(self.ends)

    def items(self) -> Iterator[tuple[bytes, int]]:
        """Word and count."""
        data, start = self.data.tobytes(), 0
        for end, count in zip(self.ends.tolist(), self.counts.tolist()):
            yield data[start:end], count
            start = end


class WordCounter:
    """Counts the pieces that cuts make of texts.

    Raises: Unsupported for cuts that are no automata.
    """

    def __init__(self, cuts: Sequence[Cut], *, budget: int = 1 << 29) -> None:
        """`budget`: bytes for words in memory before they go to disk."""
        self._slots = np.zeros(slots.COUNT_SLOTS, dtype=np.int64)
        self._kept = cut_levels(self._slots, cuts)
        self._budget = budget
        self._places, self._ends_of_levels = np.zeros(16, np.int64), np.zeros(16, np.int64)
        self._slots[slots.PLACES] = self._places.ctypes.data
        self._slots[slots.ENDS] = self._ends_of_levels.ctypes.data
        self._count = kernel("count_words", training=True)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._runs: list[Path] = []
        self._begin()

    def _begin(self) -> None:
        self._allocate(1 << 16, 1 << 20)
        self._slots[slots.COUNT_WORDS] = 0

    def _allocate(self, size: int, room: int) -> None:
        self._table = np.zeros(2 * size, dtype=np.uint64)
        self._counts = np.zeros(size // 2 + 1, dtype=np.int64)
        self._ends = np.zeros(size // 2 + 1, dtype=np.int64)
        self._arena = np.empty(room, dtype=np.uint8)
        self._link()

    def _link(self) -> None:
        a = self._slots
        a[slots.COUNT_TABLE], a[slots.COUNT_MASK] = self._table.ctypes.data, len(self._table) // 2 - 1
        a[slots.COUNT_COUNTS], a[slots.COUNT_ENDS] = self._counts.ctypes.data, self._ends.ctypes.data
        a[slots.COUNT_ARENA], a[slots.COUNT_ARENA_ROOM] = self._arena.ctypes.data, len(self._arena)

    def add(self, text: str, times: int = 1) -> None:
        """Count the words of a text, each `times` times.

        Raises: UserError for a pattern whose time grows with the square of the text.
        """
        data = text.encode("utf-8", "replace")
        source = np.frombuffer(data or b"\0", dtype=np.uint8)
        a = self._slots
        a[slots.TEXT], a[slots.TEXT_SIZE], a[slots.AT] = source.ctypes.data, len(data), 0
        a[slots.COUNT_TIMES] = times
        while status := self._count(int(a.ctypes.data)):
            if status == -2:
                raise UserError("the pattern takes time with the square of the text: simplify it")
            self._grow(int(a[slots.MORE_WORDS]))

    def _grow(self, more: int) -> None:
        words, room = int(self._slots[slots.COUNT_WORDS]), len(self._arena)
        if self._bytes() > self._budget and words:
            self._spill()
            words = 0
        used = int(self._ends[words - 1]) if words else 0
        while used + more > room:
            room *= 2
        size = len(self._table) // 2
        while 2 * (words + more) > size - 1:
            size *= 2
        counts, ends, arena = self._counts[:words], self._ends[:words], self._arena[:used]
        self._allocate(size, room)
        self._counts[:words], self._ends[:words], self._arena[:used] = counts, ends, arena
        call("grow_words", self._table, size - 1, self._arena, self._ends, words, training=True)

    def _bytes(self) -> int:
        arrays = (self._table, self._counts, self._ends, self._arena)
        return 2 * sum(array.nbytes for array in arrays)  # old and new stand side by side

    def _here(self) -> WordCounts:
        words = int(self._slots[slots.COUNT_WORDS])
        used = int(self._ends[words - 1]) if words else 0
        return WordCounts(self._arena[:used], self._ends[:words], self._counts[:words])

    def _spill(self) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="lmworks-words-")
            say("more words than memory is given for: counting goes on over the disk")
        path = Path(self._folder.name) / f"run-{len(self._runs)}"
        with open(path, "wb") as file:
            for word, count in sorted(self._here().items()):
                file.write(len(word).to_bytes(4, "little") + count.to_bytes(8, "little") + word)
        self._runs.append(path)
        self._begin()

    def finish(self, *, most: int = 1 << 24) -> WordCounts:
        """What was counted; the rarest words left out when there are more than `most`."""
        if not self._runs:
            return _most_frequent(self._here(), most)
        self._spill()
        assert self._folder is not None
        merged = self._merged()
        limit, kept = 1, list(itertools.islice(merged, 0))
        left_out = 0
        for word, count in merged:
            if count < limit:
                left_out += count
                continue
            kept.append((word, count))
            if len(kept) > 2 * most:
                limit = sorted((c for _, c in kept), reverse=True)[most] + 1
                left_out += sum(c for _, c in kept if c < limit)
                kept = [(w, c) for w, c in kept if c >= limit]
        self._folder.cleanup()
        data = np.frombuffer(b"".join(word for word, _ in kept), dtype=np.uint8)
        ends = np.cumsum([len(word) for word, _ in kept], dtype=np.int64)
        counts = np.array([count for _, count in kept], dtype=np.int64)
        return _most_frequent(WordCounts(data, ends, counts, left_out), most)

    def _merged(self) -> Iterator[tuple[bytes, int]]:
        runs = heapq.merge(*map(_read_run, self._runs))
        for word, group in itertools.groupby(runs, lambda entry: entry[0]):
            yield word, sum(count for _, count in group)


def _read_run(path: Path) -> Iterator[tuple[bytes, int]]:
    with open(path, "rb") as file:
        while head := file.read(12):
            yield file.read(int.from_bytes(head[:4], "little")), int.from_bytes(head[4:], "little")


def _most_frequent(found: WordCounts, most: int) -> WordCounts:
    if len(found) <= most:
        return found
    order = np.sort(np.argsort(-found.counts, kind="stable")[:most])
    starts = np.append(0, found.ends[:-1])[order]
    sizes = found.ends[order] - starts
    data = np.concatenate([found.data[s : s + n] for s, n in zip(starts, sizes)])
    left_out = found.left_out + int(found.counts.sum() - found.counts[order].sum())
    say(f"{len(found) - most} rare words ({left_out} occurrences) left out")
    return WordCounts(data, np.cumsum(sizes), found.counts[order], left_out)


def count_words(texts: Iterable[str], cuts: Sequence[Cut], *, budget: int = 1 << 29) -> WordCounts:
    """The words of all texts. Raises: as WordCounter."""
    counter = WordCounter(cuts, budget=budget)
    for text in texts:
        counter.add(text)
    return counter.finish()
