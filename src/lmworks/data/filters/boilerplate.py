"""Filler that stands in for text. Source: C4 (Raffel et al. 2020, section 2.2)."""

from __future__ import annotations

import re

from lmworks.data.documents import Document

_PHRASES = re.compile(
    r"lorem ipsum|enable javascript|javascript is (?:disabled|required)|"
    r"404 (?:page )?not found|access denied",
    re.IGNORECASE,
)
_SHORT_CHARACTERS = 1500  # a longer text may well speak of such a phrase


def boilerplate(document: Document) -> str | None:
    """A short text with one of the phrases that stand where a page failed to load."""
    found = _PHRASES.search(document.text) if len(document.text) < _SHORT_CHARACTERS else None
    return f"says {found[0]!r}" if found else None
