"""Sentences that say what something is: "X is a Y" answers "What is X?"."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lmworks.data.documents import Document
from lmworks.data.drawing.base import Pair, clean, first_sentences, paragraphs, phrase

_FORMS = ("What is {}?", "What does {} mean?", "Explain what {} is.")
_DEFINES = re.compile(
    r"(?:(?:A|An|The) )?([A-Za-z][\w'()-]*(?: [\w'()-]+){0,3}) (?:is|are) (?:an?|the|one of) "
)
_NO_SUBJECT = {
    *("it", "this", "that", "these", "those", "there", "here", "what", "which", "who", "he", "she"),
    *("they", "we", "you", "i", "note", "one", "example", "following", "result", "value", "if"),
    *("default", "when", "such", "each", "all", "some", "any", "both", "other", "another", "first"),
    *("second", "reason", "way", "problem", "idea", "point", "case", "and", "or", "but", "for"),
    *("so", "as", "because"),
}
_MAX_PER_DOCUMENT = 20


def draw(document: Document) -> Iterator[Pair]:
    """Paragraphs that open with a definition."""
    found = 0
    for block in paragraphs(document.text):
        text = clean(block)
        match = _DEFINES.match(text)
        if not match or found == _MAX_PER_DOCUMENT:
            continue
        words = match[1].lower().split()
        if _NO_SUBJECT & set(words):
            continue
        if answer := first_sentences(text):
            found += 1
            subject = match[0][: match.end(1)].strip()
            lowered = (
                subject[0].lower() + subject[1:]
                if subject.split()[0] in ("A", "An", "The")
                else subject
            )
            yield Pair(question=phrase(_FORMS, lowered), answer=answer)
