"""Texts whose words don't look like words: tables of numbers, encoded data, drawings in signs.

Source: Gopher, section A.1.1.
"""

from __future__ import annotations

import re

from lmworks.data.filters.base import Judged

_SYMBOL = re.compile(r"#|\.\.\.|\u2026")


def word_length(judged: Judged) -> str | None:
    """Words that are too short or too long on average. Scripts without spaces are let pass."""
    if not judged.words or not judged.spaced:
        return None
    mean = sum(map(len, judged.words)) / len(judged.words)
    if judged.limits.min_mean_word_length <= mean <= judged.limits.max_mean_word_length:
        return None
    return f"words of {mean:.1f} characters on average"


def few_words(judged: Judged) -> str | None:
    """Too few of the words have a letter in them."""
    alphabetic = sum(any(map(str.isalpha, word)) for word in judged.words)
    share = alphabetic / max(1, len(judged.words))
    if share >= judged.limits.min_alphabetic_words:
        return None
    return f"{share:.0%} of {len(judged.words)} words have a letter in them"


def symbols(judged: Judged) -> str | None:
    """Hashes and ellipses where words should be."""
    count = len(_SYMBOL.findall(judged.document.text))
    if count <= judged.limits.max_symbols_per_word * len(judged.words):
        return None
    return f"{count} # and ... to {len(judged.words)} words"
