"""Pages of memory that many sequences share: who uses which, and when one may be written to.

A page holds PAGE positions of every layer. A page may be used by several sequences and by whatever
else keeps it (a tree of prefixes); it goes back to the free ones when the last lets go. The one
used last is handed out first, so that memory which was never needed is never touched.

Source: Kwon et al. 2023, PagedAttention, arXiv 2309.06180, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable

from lmworks.core.errors import UserError

PAGE = 16  # positions


class OutOfPages(UserError):
    """A step needs more pages than are free; nothing was changed."""

    def __init__(self, needed: int, free: int, num_pages: int) -> None:
        super().__init__(
            f"{needed} pages of {PAGE} positions are needed and {free} of {num_pages} are free: "
            "end other sequences, or make the cache larger"
        )
        self.needed, self.free = needed, free


class PagePool:
    """The numbers of `num_pages` pages and how many use each, `counts`."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.counts = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Pages that nobody uses."""
        return len(self._free)

    def take(self) -> int:
        """A free page, used once from now on. Raises: IndexError if there is none."""
        page = self._free.pop()
        self.counts[page] = 1
        return page

    def retain(self, pages: Iterable[int]) -> None:
        """Count one more user of each. Raises: ValueError for a free one."""
        for page in pages:
            if not self.counts[page]:
                raise ValueError(f"page {page} is free")
            self.counts[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Count one user less of each. Raises: ValueError for a free one."""
        for page in pages:
            if not self.counts[page]:
                raise ValueError(f"page {page} is free")
            self.counts[page] -= 1
            if not self.counts[page]:
                self._free.append(page)
