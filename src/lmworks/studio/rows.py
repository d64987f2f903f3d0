"""A text in rows of a width, so that a page can draw the ones on screen and know where they are.

Rows break at line ends and behind spaces. Widths are in columns of a fixed-width font: East Asian
characters and most scripts that such fonts lack take two, emoji three, marks none. A browser may
draw some a little narrower, hardly ever wider.
"""

from __future__ import annotations

import bisect
import itertools
import unicodedata
from typing import Any

import numpy as np

_EMOJI = ((0x1F000, 0x1FAFF), (0x2600, 0x27BF), (0x2B00, 0x2BFF))
_NARROW_UP_TO = 0x0700  # Latin, Greek, Cyrillic, Hebrew, Arabic: letters of a fixed-width font
_LONGEST = 4  # characters of a row, per column: marks without end must end somewhere


class Rows:
    """Where each row of a text begins."""

    def __init__(self, text: str, columns: int) -> None:
        self.starts = _starts(text, columns)  # int32 [rows + 1], the text's end last

    def __len__(self) -> int:
        return len(self.starts) - 1

    def spans(self, first: int, count: int) -> list[tuple[int, int]]:
        """Start and end, in characters, of some rows."""
        bounds = self.starts[max(0, first) : max(0, first) + count + 1].tolist()
        return list(itertools.pairwise(bounds))

    def row_of(self, character: int) -> int:
        """The row that holds a character."""
        return int(np.searchsorted(self.starts, np.int32(character), side="right")) - 1


def _starts(text: str, columns: int) -> Any:
    if not text:
        return np.zeros(1, dtype=np.int32)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    reach = np.concatenate([[0], np.cumsum(_widths(codes), dtype=np.int64)])
    lines = np.flatnonzero(codes == 10) + 1
    if not len(lines) or lines[-1] != len(text):
        lines = np.append(lines, len(text))
    begins = np.append(0, lines[:-1])
    long = (reach[lines] - reach[begins] > columns) | (lines - begins > _LONGEST * columns)
    inner = [
        place
        for begin, end in zip(begins[long].tolist(), lines[long].tolist())
        for place in _breaks(text, reach, begin, end, columns)
    ]
    starts = np.concatenate([begins, np.array(inner, dtype=np.int64), [len(text)]])
    starts.sort()
    return starts.astype(np.int32)


def _breaks(text: str, reach: Any, at: int, end: int, columns: int) -> list[int]:
    """Where a line is broken: behind the last space that fits, or else where it is full."""
    places: list[int] = []
    if text[end - 1] == "\n":  # its mark may stand at the edge
        end -= 1
    while True:
        high = min(end, at + _LONGEST * columns)
        stop = bisect.bisect_right(reach, reach[at] + columns, at + 1, high + 1) - 1
        stop = max(stop, at + 1)
        if stop >= end:
            return places
        space = text.rfind(" ", at + (stop - at) // 2, stop)
        at = space + 1 if space >= 0 else stop
        places.append(at)


def _widths(codes: Any) -> Any:
    """uint8 [characters]: columns of each."""
    known = np.flatnonzero(np.bincount(codes))
    table = np.zeros(int(known[-1]) + 1, dtype=np.uint8)
    table[known] = [_width(int(code)) for code in known]
    return table[codes]


def _width(code: int) -> int:
    character = chr(code)
    if code == 9:
        return 2
    if unicodedata.category(character) in ("Mn", "Me") or code in (0x200C, 0x200D):
        return 0
    if any(low <= code <= high for low, high in _EMOJI):
        return 3
    if unicodedata.east_asian_width(character) in ("W", "F"):
        return 2
    narrow = code < _NARROW_UP_TO or 0x1E00 <= code < 0x2600
    return 1 if narrow else 2
