"""Headings and the paragraph under them: what a document says about something."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from lmworks.data.documents import Document
from lmworks.data.drawing.base import Pair, first_sentences, paragraphs, phrase

_FORMS = ("What do the documents say about {}?", "Tell me about {}.", "Explain {}.")
_MARKDOWN = re.compile(r"#{1,6}\s+(.+?)\s*#*\n?\Z")
_UNDERLINED = re.compile(r"(.+)\n([=*~^\"'#-])\2{2,}\s*\Z")
_MAX_TITLE_WORDS = 8


def draw(document: Document) -> Iterator[Pair]:
    """Markdown and underlined headings."""
    blocks = paragraphs(document.text)
    for head, body in itertools.pairwise(blocks):
        head = head.strip()
        found = _MARKDOWN.match(head) or _UNDERLINED.match(head)
        if not found:
            continue
        title = re.sub(r"^[\d.]+\s+", "", found[1]).strip(' `*:"')
        if not title or len(title.split()) > _MAX_TITLE_WORDS:
            continue
        if answer := first_sentences(body):
            yield Pair(question=phrase(_FORMS, title), answer=answer)
