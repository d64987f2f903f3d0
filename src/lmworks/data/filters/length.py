"""Texts too short to learn from."""

from __future__ import annotations

from lmworks.data.documents import Document

_MIN_WORDS = 5  # Gopher asks for 50; a good docstring may have 6


def too_short(document: Document) -> str | None:
    """Fewer than 5 words."""
    words = len(document.text.split())
    return f"{words} words" if words < _MIN_WORDS else None
