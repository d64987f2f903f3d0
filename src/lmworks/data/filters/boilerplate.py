"""Filler that stands in for text. Source: C4 (Raffel et al. 2020, section 2.2)."""

from __future__ import annotations

import re

from lmworks.data.filters.base import Judged
from lmworks.data.readers.base import is_code

_PHRASES = re.compile(
    r"lorem ipsum dolor|(?:please )?enable javascript|javascript is (?:disabled|required)|"
    r"404 (?:page )?not found|you have been blocked|verify you are human",
    re.IGNORECASE,
)
_SHORT_CHARACTERS = 1500  # a longer text may well speak of such a phrase


def boilerplate(judged: Judged) -> str | None:
    """A short text with one of the phrases that stand where a page failed to load."""
    if is_code(judged.document.source):  # programs name such phrases to look for them
        return None
    text = judged.document.text
    found = _PHRASES.search(text) if len(text) < _SHORT_CHARACTERS else None
    return f"says {found[0]!r}" if found else None
