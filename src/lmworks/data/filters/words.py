"""Texts whose words don't look like words: tables of numbers, encoded data, minified code."""

from __future__ import annotations

from lmworks.data.documents import Document

_MAX_MEAN_LENGTH = 25.0  # Gopher: 3 to 10, for prose; dotted names and code are longer
_MIN_LETTER_SHARE = 0.3


def word_length(document: Document) -> str | None:
    """Words of over 25 characters on average. Scripts that don't use spaces are let pass."""
    words = document.text.split()
    mean = sum(map(len, words)) / max(1, len(words))
    if mean > _MAX_MEAN_LENGTH and document.text.isascii():
        return f"words of {mean:.0f} characters on average"
    return None


def few_letters(document: Document) -> str | None:
    """Under 30 % letters among all that is not space."""
    shown = [c for c in document.text if not c.isspace()]
    share = sum(c.isalpha() for c in shown) / max(1, len(shown))
    return f"{share:.0%} letters" if share < _MIN_LETTER_SHARE else None
