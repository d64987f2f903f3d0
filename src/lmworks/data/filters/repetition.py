"""Texts that say the same thing again and again. Source: Gopher, table A1, the repetition rules."""

from __future__ import annotations

from collections import Counter

from lmworks.data.filters.base import Judged

_MIN_LINES = 10
_MIN_WORDS = 50
_MIN_LINE_CHARACTERS = 4  # a bracket or a rule alone is no repetition


def repeated_lines(judged: Judged) -> str | None:
    """Too many of the lines (of 10 or more) repeat another one."""
    stripped = (line.strip() for line in judged.document.text.splitlines())
    lines = [line for line in stripped if len(line) >= _MIN_LINE_CHARACTERS]
    if len(lines) < _MIN_LINES:
        return None
    share = 1 - len(set(lines)) / len(lines)
    if share <= judged.limits.max_repeated_lines:
        return None
    return f"{share:.0%} of {len(lines)} lines repeat another one"


def repeated_words(judged: Judged) -> str | None:
    """One group of three words makes up too much of the characters (of 50 words or more).

    Words without a letter or digit (the sides of a drawn table) do not count.
    """
    words = [word for word in judged.words if any(map(str.isalnum, word))]
    if len(words) < _MIN_WORDS:
        return None
    trigrams = Counter(zip(words, words[1:], words[2:], strict=False))
    trigram, count = trigrams.most_common(1)[0]
    share = count * sum(map(len, trigram)) / sum(map(len, words))
    if share <= judged.limits.max_top_trigram:
        return None
    shown = " ".join(trigram)[:60]
    return f"{shown!r} comes {count} times in {len(words)} words"
