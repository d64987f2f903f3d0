"""What kind of character a character is, by fixed tables (unicode_tables.py).

Python's own tables change with its version, and ids must not.
"""

from __future__ import annotations

import base64
import functools
import re
import zlib

from lmworks.tokenizers import unicode_tables
from lmworks.tokenizers.unicode_tables import CATEGORY_NAMES, FLAG_NAMES

Run = tuple[int, int]  # the first code point of a run, and the value of all in it


def _unpack(text: str) -> list[Run]:
    """Runs of code points with the same value, in order."""
    runs, numbers, value, shift, start = [], [], 0, 0, 0
    for byte in zlib.decompress(base64.b85decode(text)):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    for length, kind in zip(numbers[::2], numbers[1::2]):
        runs.append((start, kind))
        start += length
    return runs


@functools.cache
def category_runs() -> list[Run]:
    """Runs of code points by the position of their general category in CATEGORY_NAMES."""
    return _unpack(unicode_tables.CATEGORIES)


@functools.cache
def flag_runs() -> list[Run]:
    """Runs of code points by one bit for each of FLAG_NAMES."""
    return _unpack(unicode_tables.FLAGS)


def _per_character(runs: list[Run]) -> bytes:
    ends = [start for start, _ in runs[1:]] + [0x110000]
    return b"".join(bytes([kind]) * (end - start) for (start, kind), end in zip(runs, ends))


@functools.cache
def categories() -> bytes:
    """Per code point the position of its general category in CATEGORY_NAMES."""
    return _per_character(category_runs())


@functools.cache
def flags() -> bytes:
    """Per code point one bit for each of FLAG_NAMES."""
    return _per_character(flag_runs())


def category(character: str) -> str:
    """General category; Cn for an unassigned character."""
    return CATEGORY_NAMES[categories()[ord(character)]]


def has(character: str, flag: str) -> bool:
    """Whether a character is `white`, a `word` character, `punctuation` ..."""
    return bool(flags()[ord(character)] >> FLAG_NAMES.index(flag) & 1)


def lower(character: str) -> str:
    """Lower case of one character, out of context."""
    return unicode_tables.LOWER.get(ord(character)) or character.lower()


@functools.cache
def character_class(flag: str) -> str:
    """The characters that have a flag, as a class in an expression."""
    bit = 1 << FLAG_NAMES.index(flag)
    return _class_of([(start, bool(bits & bit)) for start, bits in flag_runs()])


@functools.cache
def unassigned() -> re.Pattern[str]:
    """Finds a character that the tables don't know, and that newer libraries may."""
    return re.compile(_class_of([(start, kind == 0) for start, kind in category_runs()]))


def _class_of(runs: list[tuple[int, bool]]) -> str:
    ranges, start = [], -1
    for code, held in [*runs, (0x110000, False)]:
        if held and start < 0:
            start = code
        elif start >= 0 and not held:
            ranges.append(f"\\U{start:08x}-\\U{code - 1:08x}")
            start = -1
    return f"[{''.join(ranges)}]"
