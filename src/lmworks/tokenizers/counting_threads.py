"""Two counters with a thread each: texts go to them in turns, some hundred kilobytes at a time.

There are two whatever the machine has, and which counter gets a text depends on the texts before
it alone, so that words come in the same order everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lmworks.tokenizers.pre_tokenizers import Cut
from lmworks.tokenizers.word_counts import WordCounter, WordCounts

_BATCH = 1 << 18  # characters that are worth a turn
_COUNTERS = 2


class ThreadedCounter:
    """As WordCounter. Raises: Unsupported for cuts that are no automata."""

    def __init__(
        self,
        cuts: Sequence[Cut],
        *,
        budget: int = 1 << 29,
        folder: Path | None = None,
        runs: Sequence[int] = (),
    ) -> None:
        """`runs`: what `checkpoint` gave, to go on there."""
        folders = [None if folder is None else folder / str(i) for i in range(_COUNTERS)]
        numbers = runs or [0] * _COUNTERS
        self._counters = [
            WordCounter(cuts, budget=budget // _COUNTERS, folder=place, runs=number)
            for place, number in zip(folders, numbers)
        ]
        self._pending: list[Future[None] | None] = [None] * _COUNTERS
        self._pool: ThreadPoolExecutor | None = None
        self._begin()

    def _begin(self) -> None:
        self._batch: list[str] = []
        self._size = self._turn = 0

    def add(self, text: str) -> None:
        """Count the words of a text, now or soon. Raises: as WordCounter.add, now or soon."""
        self._batch.append(text)
        self._size += len(text)
        if self._size >= _BATCH:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_COUNTERS, thread_name_prefix="lmworks-count")
        number = self._turn % _COUNTERS
        self._wait(number)
        task = self._pool.submit(_count, self._counters[number], self._batch)
        self._pending[number] = task
        self._batch, self._size, self._turn = [], 0, self._turn + 1

    def _wait(self, number: int) -> None:
        task, self._pending[number] = self._pending[number], None
        if task is not None:
            task.result()

    def _settle(self) -> None:
        """Let all that was handed over be counted."""
        if self._pool is None:  # so little that no thread is worth it
            _count(self._counters[0], self._batch)
        elif self._batch:
            self._hand_over()
        for number in range(_COUNTERS):
            self._wait(number)
        self._begin()

    def checkpoint(self) -> list[int]:
        """Write down all that is counted; returns how many files that makes for each counter."""
        self._settle()
        return [counter.checkpoint() for counter in self._counters]

    def finish(self, *, most: int = 1 << 25) -> WordCounts:
        """What was counted; the rarest words left out when there are more than `most` bytes."""
        self._settle()
        if self._pool is not None:
            self._pool.shutdown()
        first, *others = self._counters
        for other in others:
            first.absorb(other)
        return first.finish(most=most)


def _count(counter: WordCounter, texts: list[str]) -> None:
    for text in texts:
        counter.add(text)
