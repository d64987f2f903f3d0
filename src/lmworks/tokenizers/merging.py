"""The merge loop: symbols of one word to ids.

Two ways to the same result: for short words a scan per merge, which is quadratic and quick; for
one word of megabytes (a line without spaces) a heap over a linked list, O(n log n).

Source: Sennrich et al. 2016, arXiv 1508.07909, section 3.2.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from typing import NamedTuple

Pair = tuple[int, int]
Ranks = Mapping[Pair, tuple[int, int]]  # (left, right) -> (rank, merged id)

_LONG_WORD = 200  # symbols; from here on the scan loses to the heap


class Merge(NamedTuple):
    """One merge that was done: the symbols at `place` and behind it became `id`."""

    rank: int
    place: int
    id: int


def merge(symbols: list[int], ranks: Ranks, done: list[Merge] | None = None) -> list[int]:
    """Apply merges one at a time: the lowest rank first, the leftmost of equals.

    Args:
        done: is given every merge, in order.
    """
    if len(symbols) > _LONG_WORD and done is None:
        return merge_long(symbols, ranks)
    symbols = list(symbols)
    while len(symbols) > 1:
        best, place = None, 0
        for at, pair in enumerate(itertools.pairwise(symbols)):
            found = ranks.get(pair)
            if found is not None and (best is None or found[0] < best[0]):
                best, place = found, at
        if best is None:
            break
        symbols[place : place + 2] = [best[1]]
        if done is not None:
            done.append(Merge(best[0], place, best[1]))
    return symbols


def merge_long(symbols: list[int], ranks: Ranks) -> list[int]:
    """`merge` for long words."""
    symbols = list(symbols)
    after: list[int] = [*range(1, len(symbols)), -1]
    before: list[int] = [*range(-1, len(symbols) - 1)]
    heap: list[tuple[int, int, int, int]] = []

    def offer(at: int) -> None:
        if at >= 0 and after[at] >= 0:
            found = ranks.get((symbols[at], symbols[after[at]]))
            if found is not None:
                heapq.heappush(heap, (found[0], at, symbols[at], symbols[after[at]]))

    for at in range(len(symbols) - 1):
        offer(at)
    while heap:
        _, at, left, right = heapq.heappop(heap)
        following = after[at]
        if symbols[at] != left or following < 0 or symbols[following] != right:
            continue  # a merge nearby made this offer stale
        symbols[at], symbols[following] = ranks[left, right][1], -1
        after[at] = after[following]
        if after[at] >= 0:
            before[after[at]] = at
        offer(before[at])
        offer(at)
    return [symbol for symbol in symbols if symbol >= 0]
