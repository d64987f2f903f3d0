"""Texts that say the same thing again and again. Source: Gopher, table A1, the repetition rules."""

from __future__ import annotations

from collections import Counter

from lmworks.data.documents import Document

_MIN_LINES = 10
_MAX_LINE_SHARE = 0.5  # Gopher: 0.3 of lines; tables and code repeat more
_MIN_WORDS = 50
_MAX_GRAM_SHARE = 0.3


def repeated_lines(document: Document) -> str | None:
    """Over half of the lines (of 10 or more) are repeats of others."""
    lines = [line.strip() for line in document.text.splitlines() if len(line.strip()) > 3]
    if len(lines) < _MIN_LINES:
        return None
    share = 1 - len(set(lines)) / len(lines)
    return f"{share:.0%} of {len(lines)} lines are repeats" if share > _MAX_LINE_SHARE else None


def repeated_words(document: Document) -> str | None:
    """One group of three words makes up over 30 % of the text."""
    words = document.text.split()
    if len(words) < _MIN_WORDS:
        return None
    grams = Counter(zip(words, words[1:], words[2:], strict=False))
    gram, count = grams.most_common(1)[0]
    share = 3 * count / len(words)
    if share <= _MAX_GRAM_SHARE:
        return None
    return f"{' '.join(gram)[:60]!r} comes {count} times in {len(words)} words"
