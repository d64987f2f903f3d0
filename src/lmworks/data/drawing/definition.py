"""Sentences that say what something is: "X is a Y" answers "What is X?"."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lmworks.data.documents import Document
from lmworks.data.drawing.base import Pair, as_subject, clean, first_sentences, paragraphs, phrase
from lmworks.data.python_docs import SOURCE, TOPICS
from lmworks.data.readers.base import is_code

_ONE = ("What is {}?", "Explain what {} is.", "Tell me what {} is.")
_MANY = ("What are {}?", "Explain what {} are.", "Tell me what {} are.")
_DEFINES = re.compile(
    r"((?:(?:A|An|The) )?[\"'`]?[A-Za-z][\w'()-]*(?: [\w'()-]+){0,3}[\"'`]?) "
    r"(is|are) (?:an?|the|one of) "
)
# Words that point somewhere else, or that open a sentence about something else.
_POINTING = (
    "it this that these those there here what which who he she they we you i his her its their our "
    "your my note one example following result value values if default when such each all some any "
    "both other another first second third last next same only reason way problem idea point case "
    "and or but for so as because than then not no never nor in on at by from with without to of "
    "is are was were be has have had do does did can could will would should may might must where"
)
_NO_SUBJECT = frozenset(_POINTING.split())
_MAY_STAND_INSIDE = frozenset(("of", "for", "in", "and", "on", "to", "with"))
_MAX_PER_DOCUMENT = 20


def draw(document: Document) -> Iterator[Pair]:
    """Paragraphs that open with a definition."""
    if is_code(document.source) or _is_docstring(document):
        return
    found = 0
    for block in paragraphs(document.text):
        match = _DEFINES.match(clean(block))
        if not match or not _is_subject(match[1]):
            continue
        if answer := first_sentences(block):
            yield Pair(question=_question(match[1], match[2]), answer=answer)
            found += 1
            if found == _MAX_PER_DOCUMENT:
                return


def _is_docstring(document: Document) -> bool:
    """Docstrings define their arguments, which no one can ask about without the function."""
    return document.source.startswith(SOURCE) and not document.source.startswith(TOPICS)


def _is_subject(subject: str) -> bool:
    words = re.sub(r"[\"'`]", "", subject).lower().split()
    if words[0] in ("a", "an", "the"):
        words = words[1:]
    inner = set(words[1:-1]) - _MAY_STAND_INSIDE
    return bool(words) and not _NO_SUBJECT & {words[0], words[-1], *inner}


def _question(subject: str, verb: str) -> str:
    return phrase(_MANY if verb == "are" else _ONE, as_subject(subject))
