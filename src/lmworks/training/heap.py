"""What a process holds while it takes and gives back memory: glibc's malloc, played through.

Live bytes alone fall short by up to a fifth, since a freed block is often too small for the next
request, or lies between two that are in use. Played are the rules that matter for tensors: the
smallest free block that fits is cut, neighbours that are free become one, the heap grows at its
end, and blocks over the threshold are mapped apart and given back at once.

Left out: blocks under 1 kB, which lie in caches of their own, and the arenas of other threads.
Source: Lea, "A memory allocator" (2000), and the comments of glibc's malloc.c.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

_PAGE, _ALIGN = 4096, 64
# An aligned block is cut out of one that is longer by the alignment and two headers, so a hole of
# just the right size is passed over. What is left over is free again.
_SPARE = 112
_SMALL = 1024


class Heap:
    """A heap that only grows, as `training.threads.keep_freed_memory` has it.

    Args:
        map_threshold: blocks of at least so many bytes are mapped apart.
    Attributes:
        resident: bytes that the process holds now; peak: the most it held.
    """

    def __init__(self, map_threshold: int) -> None:
        self._threshold = map_threshold
        self._used: dict[int, tuple[int, int]] = {}  # block -> (place, size); place -1: mapped
        self._free: list[tuple[int, int]] = []  # (size, place), sorted
        self._size_at: dict[int, int] = {}  # place of a free block -> its size
        self._ends: dict[int, int] = {}  # end of a free block -> its place
        self._top = self._grown = self._mapped = 0
        self.peak = 0

    @property
    def resident(self) -> int:
        return self._grown + self._mapped

    def take(self, block: int, num_bytes: int) -> None:
        """Allocate under a number of the caller's."""
        if num_bytes < _SMALL:
            return
        if num_bytes >= self._threshold:
            size = -(-num_bytes // _PAGE) * _PAGE
            self._used[block] = (-1, size)
            self._mapped += size
        else:
            size = -(-num_bytes // _ALIGN) * _ALIGN
            self._used[block] = (self._place(size + _SPARE), size)
            self._merge(self._used[block][0] + size, _SPARE)
        self.peak = max(self.peak, self.resident)

    def _place(self, size: int) -> int:
        at = bisect.bisect_left(self._free, (size, -1))
        if at == len(self._free):
            place = self._top
            self._top += size
            self._grown = max(self._grown, self._top)
            return place
        found, place = self._free[at]
        self._unlist(place, found)
        if found > size:
            self._list(place + size, found - size)
        return place

    def give_back(self, block: int) -> None:
        """Free; a block that was too small to be played is passed over."""
        place, size = self._used.pop(block, (0, 0))
        if place < 0:
            self._mapped -= size
        elif size:
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


def peak_resident(events: Iterable[tuple[int, int]], map_threshold: int) -> int:
    """The most that is held while (block, bytes taken, or given back if negative) happen."""
    heap = Heap(map_threshold)
    for block, num_bytes in events:
        if num_bytes > 0:
            heap.take(block, num_bytes)
        elif num_bytes < 0:
            heap.give_back(block)
    return heap.peak
