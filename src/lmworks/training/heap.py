"""What a process holds while it takes and gives back memory: glibc's malloc, played through.

Live bytes alone fall short by up to a fifth, since a freed block is often too small for the next
request, or lies between two that are in use. Played are the rules that matter for tensors: the
smallest free chunk that fits is cut, neighbours that are free become one, the heap grows at its
end, an aligned block is cut out of a longer one whose ends are free again, and blocks over the
threshold are mapped apart and given back at once. A thread's cache of small chunks is played as
well, where the process has one: such an end in it is joined with nothing.

Left out: the arenas of other threads. What small blocks lie in between is chance; a caller plays
with several kinds of them (`beside`).
Source: Lea, "A memory allocator" (2000), and the comments of glibc's malloc.c (2.36).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

_PAGE, _ALIGN = 4096, 64
_HEADER, _STEP, _LEAST = 8, 16, 32  # of a chunk: before its bytes, granularity, smallest
_CACHED = 1040  # the longest chunk that a thread keeps for itself


class Heap:
    """A heap that only grows, as `training.threads.keep_freed_memory` has it.

    Args:
        map_threshold: blocks of at least so many bytes are mapped apart.
        beside: bytes of small blocks that come and go with each block.
        cached: how many chunks of each small size a thread keeps; 0 if it keeps none.
    Attributes:
        resident: bytes that the process holds now; peak: the most it held.
    """

    def __init__(self, map_threshold: int, *, beside: Sequence[int] = (), cached: int = 0) -> None:
        self._threshold, self._beside, self._most_cached = map_threshold, beside, cached
        # block -> its chunks (place, size); place -1: mapped
        self._used: dict[int, list[tuple[int, int]]] = {}
        self._free: list[tuple[int, int]] = []  # (size, place), sorted
        self._size_at: dict[int, int] = {}  # place of a free chunk -> its size
        self._ends: dict[int, int] = {}  # end of a free chunk -> its place
        self._cache: dict[int, list[int]] = {}  # size -> places
        self._top = self._grown = self._mapped = 0
        self.peak = 0

    @property
    def resident(self) -> int:
        return self._grown + self._mapped

    def take(self, block: int, num_bytes: int) -> None:
        """Allocate under a number of the caller's."""
        chunks = [self._chunk(_chunk_size(small)) for small in self._beside]
        if num_bytes >= self._threshold:
            size = -(-(num_bytes + _HEADER) // _PAGE) * _PAGE
            self._mapped += size
            chunks.append((-1, size))
        else:
            chunks.append(self._aligned(_chunk_size(num_bytes)))
        self._used[block] = chunks
        self.peak = max(self.peak, self.resident)

    def give_back(self, block: int) -> None:
        """Free; a block that is not known is passed over."""
        for place, size in reversed(self._used.pop(block, [])):
            if place < 0:
                self._mapped -= size
            else:
                self._release(place, size)

    def _aligned(self, size: int) -> tuple[int, int]:
        """A chunk whose bytes begin at a multiple of the alignment."""
        place, found = self._chunk(_chunk_size(size + _ALIGN + _LEAST))
        before = -(place + 2 * _HEADER) % _ALIGN
        if 0 < before < _LEAST:
            before += _ALIGN
        if before:
            self._release(place, before)
        place, found = place + before, found - before
        if found - size >= _LEAST:
            self._release(place + size, found - size)
            found = size
        return place, found

    def _chunk(self, size: int) -> tuple[int, int]:
        """(place, size) of the chunk that malloc gives for one of `size`."""
        if self._most_cached and (kept := self._cache.get(size)):
            return kept.pop(), size
        at = bisect.bisect_left(self._free, (size, -1))
        if at == len(self._free):
            place = self._top
            self._top += size
            self._grown = max(self._grown, self._top)
            return place, size
        found, place = self._free[at]
        self._unlist(place, found)
        if found - size < _LEAST:
            return place, found
        self._list(place + size, found - size)
        return place, size

    def _release(self, place: int, size: int) -> None:
        if self._most_cached and size <= _CACHED:
            kept = self._cache.setdefault(size, [])
            if len(kept) < self._most_cached:
                kept.append(place)
                return
        self._merge(place, size)

    def _merge(self, place: int, size: int) -> None:
        before = self._ends.get(place)
        if before is not None:
            size += self._size_at[before]
            self._unlist(before, self._size_at[before])
            place = before
        after = self._size_at.get(place + size)
        if after is not None:
            self._unlist(place + size, after)
            size += after
        if place + size == self._top:
            self._top = place
        else:
            self._list(place, size)

    def _list(self, place: int, size: int) -> None:
        bisect.insort(self._free, (size, place))
        self._size_at[place] = size
        self._ends[place + size] = place

    def _unlist(self, place: int, size: int) -> None:
        del self._free[bisect.bisect_left(self._free, (size, place))]
        del self._size_at[place], self._ends[place + size]


def _chunk_size(num_bytes: int) -> int:
    return max(_LEAST, -(-(num_bytes + _HEADER) // _STEP) * _STEP)


def peak_resident(
    events: Iterable[tuple[int, int]],
    map_threshold: int,
    *,
    beside: Sequence[int] = (),
    cached: int = 0,
) -> int:
    """The most that is held while (block, bytes taken, or given back if negative) happen.

    Args:
        beside, cached: see `Heap`.
    """
    heap = Heap(map_threshold, beside=beside, cached=cached)
    for block, num_bytes in events:
        if num_bytes > 0:
            heap.take(block, num_bytes)
        elif num_bytes < 0:
            heap.give_back(block)
    return heap.peak
