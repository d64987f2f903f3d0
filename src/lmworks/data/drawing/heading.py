"""Headings and the paragraph under them: what a document says about something.

Three kinds of heading: Markdown's (web pages are read into these), underlined ones, and in plain
text and PDF files a numbered or capital line that stands alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from lmworks.data.documents import Document
from lmworks.data.drawing.base import Pair, clean, first_sentences, paragraphs, phrase
from lmworks.data.readers.base import is_code

_FORMS = ('What do the documents say about "{}"?', 'Tell me about "{}".', 'Explain "{}".')
_MARKDOWN = re.compile(r"#{1,6}[ \t]+(\S.*?)[ \t#]*\n?\Z")
_UNDERLINED = re.compile(r"(\S.*)\n([=*~^\"'#-])\2{2,}\s*\Z")
_NUMBERED = re.compile(r"\d+(?:\.\d+)*\.?[ \t]+([A-Z][^.!?;:]*)\Z")
_CAPITALS = re.compile(r"([A-Z][A-Z\d' -]{3,})\Z")
_EMPTY = re.compile(  # headings that name no subject
    r"(?:chapter|part|section|book|contents|introduction|abstract|summary|notes?|examples?|usage|"
    r"see also|table of contents|overview|conclusions?|references|description)\b[\s\w.:]{0,8}\Z",
    re.IGNORECASE,
)
_MAX_TITLE_WORDS = 8
_READ_CHARACTERS = 1500
_PLAIN_KINDS = (".txt", ".text", ".pdf")


def draw(document: Document) -> Iterator[Pair]:
    """Headings with their first paragraph."""
    if is_code(document.source):
        return
    seen: set[str] = set()
    for head, body in _headed(document):
        title = re.sub(r"^[\d.]+\s+", "", clean(head)).strip(' `*:"')
        if not 1 <= len(title.split()) <= _MAX_TITLE_WORDS or _EMPTY.match(title):
            continue
        answer = first_sentences(body)
        if answer and title not in seen and any(map(str.isalpha, title)):
            seen.add(title)
            yield Pair(question=phrase(_FORMS, title.replace('"', "")), answer=answer)


def _headed(document: Document) -> Iterator[tuple[str, str]]:
    if document.source.endswith(_PLAIN_KINDS):
        yield from _lines_alone(document.text)
    for head, body in itertools.pairwise([*paragraphs(document.text), ""]):
        head, first, rest = head.strip(), *_first_line(head)
        if found := _MARKDOWN.match(head) or _UNDERLINED.match(head):
            yield found[1], body
        elif rest and (found := _MARKDOWN.match(first)):  # no empty line under the heading
            yield found[1], rest


def _first_line(block: str) -> tuple[str, str]:
    first, _, rest = block.strip().partition("\n")
    return first, rest


def _lines_alone(text: str) -> Iterator[tuple[str, str]]:
    """Text of PDF files has no empty lines, so lines are looked at one by one."""
    start = 0
    for line in text.splitlines(keepends=True):
        start += len(line)
        stripped = line.strip()
        if len(stripped) > 80:
            continue
        if found := _NUMBERED.match(stripped) or _CAPITALS.match(stripped):
            body = text[start : start + _READ_CHARACTERS].lstrip()
            if body[:1].isupper():
                title = found[1] if found.re is _NUMBERED else found[1].capitalize()
                yield title, paragraphs(body)[0]
