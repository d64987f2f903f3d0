"""Counting words in bounded memory.

Words and their counts lie in flat arrays that grow as they must, up to a budget. Beyond it, what
was counted goes to disk as it is and counting begins anew. At the end the runs are added up part by
part, a part being the words whose hash begins alike, so that a fraction is in memory at a time.
If there are more words than a trainer can hold, those below a count are left out, and it is said
how many occurrences that were.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open
from lmworks.core.progress import say
from lmworks.tokenizers import slots
from lmworks.tokenizers.calls import COUNTING, call, kernel
from lmworks.tokenizers.compiled import WORD_MASKS
from lmworks.tokenizers.compiled_tables import cut_levels
from lmworks.tokenizers.pre_tokenizers import Cut

_COUNTED = 1 << 16  # counts from here on are all "often" when words are left out


@dataclasses.dataclass(frozen=True)
class WordCounts:
    """Words as bytes, one behind the other, where each ends, and how often each occurs."""

    data: Any  # uint8 [bytes]; int32 [symbols] for words that are merged in part (extend.py)
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

    def __init__(
        self,
        cuts: Sequence[Cut],
        *,
        budget: int = 1 << 29,
        folder: Path | None = None,
        runs: int = 0,
    ) -> None:
        """
        Args:
            budget: bytes for words in memory before they go to disk.
            folder: where they go; a temporary one otherwise.
            runs: how many of the files there are counted already, and are gone on with.
        """
        self._slots = np.zeros(slots.COUNT_SLOTS, dtype=np.int64)
        self._kept = cut_levels(self._slots, cuts)
        self._budget = budget
        self._places, self._ends_of_levels = np.zeros(16, np.int64), np.zeros(16, np.int64)
        self._slots[slots.PLACES] = self._places.ctypes.data
        self._slots[slots.ENDS] = self._ends_of_levels.ctypes.data
        self._slots[slots.MASKS] = WORD_MASKS.ctypes.data
        self._count = kernel("count_words", module=COUNTING)
        self._add = kernel("add_words", module=COUNTING)
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._runs = [self._run_file(number) for number in range(runs)]
        self._absorbed: list[WordCounter] = []
        self._begin()

    def _begin(self) -> None:
        self._allocate(1 << 16, 1 << 20)
        self._slots[slots.COUNT_WORDS] = 0  # what it held before is gone

    def _allocate(self, size: int, room: int) -> None:
        self._table = np.zeros((size, 4), dtype=np.uint64)
        self._ends = np.zeros(size // 2 + 1, dtype=np.int64)
        self._arena = np.empty(room, dtype=np.uint8)
        a = self._slots
        a[slots.COUNT_TABLE], a[slots.COUNT_MASK] = self._table.ctypes.data, size - 1
        a[slots.COUNT_ENDS] = self._ends.ctypes.data
        a[slots.COUNT_ARENA], a[slots.COUNT_ARENA_ROOM] = self._arena.ctypes.data, room

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

    def _grow(self, more: int, *, spill: bool = True) -> None:
        words, room = int(self._slots[slots.COUNT_WORDS]), len(self._arena)
        if spill and self._bytes() > self._budget and words:
            self._spill()
            words = 0
        used = int(self._ends[words - 1]) if words else 0
        while used + more > room:
            room *= 2
        old, size = self._table, len(self._table)
        while 2 * (words + more) > size - 1:
            size *= 2
        ends, arena = self._ends[:words], self._arena[:used]
        self._allocate(size, room)
        self._ends[:words], self._arena[:used] = ends, arena
        call("grow_counts", old, len(old), self._table, size - 1, module=COUNTING)

    def _bytes(self) -> int:
        arrays = (self._table, self._ends, self._arena)
        return 2 * sum(array.nbytes for array in arrays)  # old and new stand side by side

    def _here(self) -> WordCounts:
        words = int(self._slots[slots.COUNT_WORDS])
        used = int(self._ends[words - 1]) if words else 0
        counts = np.empty(words, dtype=np.int64)
        call("list_counts", self._table, len(self._table), counts, module=COUNTING)
        return WordCounts(self._arena[:used], self._ends[:words], counts)

    def _run_file(self, number: int) -> Path:
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="lmworks-words-")
            self._folder = Path(self._temporary.name)
            say("more words than memory is given for: counting goes on over the disk")
        return self._folder / f"run-{number}.npz"

    def checkpoint(self) -> int:
        """Write down all that is counted; returns how many files that makes in all."""
        if self._slots[slots.COUNT_WORDS]:
            self._spill()
        return len(self._runs)

    def _spill(self) -> None:
        path = self._run_file(len(self._runs))
        here = self._here()
        save_counts(here, path)
        self._runs.append(path)
        self._begin()

    def finish(self, *, most: int = 1 << 25) -> WordCounts:
        """What was counted; the rarest words left out when there are more than `most` bytes."""
        if not self._runs:
            return _most_frequent([self._here()], most)
        self.checkpoint()
        least, left_out = self._least(most)
        found = [_at_least(part, least) for part in self._parts()]
        if self._temporary is not None:
            self._temporary.cleanup()
        if left_out:
            say(f"words seen less than {least} times ({left_out} occurrences) left out")
        return dataclasses.replace(joined(found), left_out=left_out)

    def _least(self, most: int) -> tuple[int, int]:
        """The lowest count whose words, with all more frequent ones, fit; occurrences below it."""
        sizes, times = np.zeros(_COUNTED), np.zeros(_COUNTED)
        for part in self._parts():
            count = np.minimum(part.counts, _COUNTED - 1)
            sizes += np.bincount(count, np.diff(part.ends, prepend=0), _COUNTED)
            times += np.bincount(count, part.counts, _COUNTED)
        from_above = np.cumsum(sizes[::-1])[::-1]
        least = int(np.argmax(from_above <= most)) if (from_above <= most).any() else _COUNTED - 1
        return least, int(times[:least].sum())

    def _parts(self) -> Iterator[WordCounts]:
        """All words, one part after the other."""
        size = sum(path.stat().st_size for path in self._runs)
        parts = 1 << max(2, (8 * size // self._budget).bit_length())
        a = self._slots
        for part in range(parts):
            self._begin()
            a[slots.PART], a[slots.PART_MASK] = part, parts - 1
            for path in self._runs:
                self._add_words(load_counts(path))
            yield self._here()

    def absorb(self, other: WordCounter) -> None:
        """Add what another counter has counted."""
        if self._runs or other._runs:
            other.checkpoint()
            self._runs += other._runs
            self._absorbed.append(other)  # its folder lives as long
        else:
            self._slots[slots.PART] = self._slots[slots.PART_MASK] = 0
            self._add_words(other._here())

    def _add_words(self, words: WordCounts) -> None:
        a = self._slots
        data, ends, counts = words.data, words.ends, words.counts
        a[slots.TEXT], a[slots.TEXT_SIZE], a[slots.AT] = data.ctypes.data, len(data), 0
        a[slots.WORDS_ENDS], a[slots.WORDS_TIMES] = ends.ctypes.data, counts.ctypes.data
        a[slots.WORDS_IN] = len(ends)
        while self._add(int(a.ctypes.data)):
            self._grow(int(a[slots.MORE_WORDS]), spill=False)


def save_counts(words: WordCounts, path: Path) -> None:
    """Write counted words, whole or not at all."""
    with atomic_open(path) as file:
        for array in (words.data, words.ends, words.counts, np.array(words.left_out)):
            np.save(file, array)


def load_counts(path: Path) -> WordCounts:
    """Read what `save_counts` wrote. Raises: UserError for a damaged file."""
    try:
        with open(path, "rb") as file:
            data, ends, counts, left_out = (np.load(file) for _ in range(4))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged: remove its folder and run again") from error
    return WordCounts(data, ends, counts, int(left_out))


def joined(parts: list[WordCounts]) -> WordCounts:
    """The words of all parts, one part behind the other."""
    if len(parts) == 1:
        return parts[0]
    ends, at = [], 0
    for part in parts:
        ends.append(part.ends + at)
        at += len(part.data)
    return WordCounts(
        np.concatenate([part.data for part in parts]),
        np.concatenate(ends),
        np.concatenate([part.counts for part in parts]),
    )


def from_words(words: Mapping[str, int]) -> WordCounts:
    """Counted words in flat arrays."""
    parts = [word.encode("utf-8", "replace") for word in words]
    return WordCounts(
        np.frombuffer(b"".join(parts), dtype=np.uint8),
        np.cumsum([len(part) for part in parts], dtype=np.int64),
        np.array(list(words.values()), dtype=np.int64),
    )


def _at_least(part: WordCounts, least: int) -> WordCounts:
    """The words of a part that are frequent enough."""
    keep = part.counts >= least
    sizes = np.diff(part.ends, prepend=0)
    data = part.data[np.repeat(keep, sizes)]
    return WordCounts(data, np.cumsum(sizes[keep]), part.counts[keep])


def _most_frequent(parts: list[WordCounts], most: int) -> WordCounts:
    (found,) = parts
    if len(found.data) <= most:
        return found
    sizes = np.diff(found.ends, prepend=0)
    order = np.argsort(-found.counts, kind="stable")
    fits = np.cumsum(sizes[order]) <= most
    least = int(found.counts[order[fits.sum()]]) + 1
    kept = _at_least(found, least)
    left_out = int(found.counts.sum() - kept.counts.sum())
    say(f"words seen less than {least} times ({left_out} occurrences) left out")
    return dataclasses.replace(kept, left_out=left_out)


def count_words(texts: Iterable[str], cuts: Sequence[Cut], *, budget: int = 1 << 29) -> WordCounts:
    """The words of all texts. Raises: as WordCounter."""
    counter = WordCounter(cuts, budget=budget)
    for text in texts:
        counter.add(text)
    return counter.finish()
