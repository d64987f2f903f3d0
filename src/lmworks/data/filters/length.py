"""Texts too short to learn from. Source: Gopher, section A.1.1."""

from __future__ import annotations

from lmworks.data.filters.base import Judged


def too_short(judged: Judged) -> str | None:
    """Fewer words than `min_words`."""
    words = len(judged.words)
    return f"{words} words" if words < judged.quality.min_words else None
