"""In which order windows are drawn: rows of (part, window, use), a pure function of seed and step.

Two orders, both without chance where none is wanted. A growing pool draws what was drawn least
among what is open, so that nothing is met twice while something open is new, and text that opens
late is caught up on. A mixture gives each row to the part that is owed the most, so that after
every row each part has what its weights say, to within one row, and goes through a part in epochs
of its own.

Orders are played from the first step on, once, and kept: 8 bytes a row.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Place(NamedTuple):
    """Which window of which part of the text, and how often it was drawn before."""

    part: int
    window: int
    use: int


class Order(Protocol):
    """What a batch holds."""

    def rows(self, step: int) -> list[Place]:
        """The rows of batch number `step`, counted from 0."""


class GrowingPool:
    """Windows 0 to `count` open one after the other.

    Args:
        opened: step -> part of the windows that is open, rising; at least a batch always is.
    Source: Platanios et al. 2019, "Competence-based curriculum learning for neural machine
        translation", arXiv 1903.09848, section 2. Differs: what was drawn least comes first.
    """

    def __init__(
        self, count: int, batch_size: int, opened: Callable[[int], float], seed: int
    ) -> None:
        self._count, self._rows, self._opened = count, batch_size, opened
        self._random = np.random.default_rng([seed, 1])
        self._heap: list[tuple[int, float, int]] = []  # (uses, a die, window)
        self._open = 0
        self._drawn: list[np.ndarray] = []  # (B, 2) int32 of each step: window, use

    def rows(self, step: int) -> list[Place]:
        """See `Order`."""
        while len(self._drawn) <= step:
            self._drawn.append(self._draw(len(self._drawn)))
        return [Place(0, int(window), int(use)) for window, use in self._drawn[step]]

    def _draw(self, step: int) -> np.ndarray:
        wanted = max(self._rows, math.ceil(self._opened(step) * self._count))
        wanted = min(self._count, max(wanted, self._open))
        dice = self._random.random(wanted - self._open + self._rows).tolist()
        for window in range(self._open, wanted):
            heapq.heappush(self._heap, (0, dice.pop(), window))
        self._open = wanted
        rows: list[tuple[int, int]] = []
        while len(rows) < self._rows:
            # A batch holds a window twice only if it holds all of them.
            taken = [
                heapq.heappop(self._heap)
                for _ in range(min(self._rows - len(rows), len(self._heap)))
            ]
            rows += [(window, uses) for uses, _, window in taken]
            for uses, _, window in taken:
                heapq.heappush(self._heap, (uses + 1, dice.pop(), window))
        return np.array(rows, dtype=np.int32)


class Mixture:
    """Parts by weights that may change from step to step.

    Args:
        counts: windows of each part.
        weights: step -> one number for each part, which sum to 1.
    """

    def __init__(
        self,
        counts: Sequence[int],
        batch_size: int,
        weights: Callable[[int], np.ndarray],
        seed: int,
    ) -> None:
        self._counts, self._rows, self._weights, self._seed = counts, batch_size, weights, seed
        self._owed = np.zeros(len(counts))
        self._drawn: list[np.ndarray] = []  # (B, 2) int32 of each step: part, number in it
        self._next = [0] * len(counts)
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}

    def rows(self, step: int) -> list[Place]:
        """See `Order`."""
        while len(self._drawn) <= step:
            self._drawn.append(self._draw(len(self._drawn)))
        return [self._place(int(part), int(number)) for part, number in self._drawn[step]]

    def _draw(self, step: int) -> np.ndarray:
        weights = self._weights(step)
        rows = np.empty((self._rows, 2), dtype=np.int32)
        for row in rows:
            self._owed += weights
            part = int(np.argmax(self._owed))
            self._owed[part] -= 1
            row[:] = part, self._next[part]
            self._next[part] += 1
        return rows

    def _place(self, part: int, number: int) -> Place:
        epoch, within = divmod(number, self._counts[part])
        if self._epochs.get(part, (-1, None))[0] != epoch:
            random = np.random.default_rng([self._seed, 2, part, epoch])
            self._epochs[part] = epoch, random.permutation(self._counts[part])
        return Place(part, int(self._epochs[part][1][within]), epoch)
