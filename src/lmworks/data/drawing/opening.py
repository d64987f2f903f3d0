"""What any prose gives: how a document opens, and how its sentences go on.

Weak questions, drawn only from a corpus that gives few better ones, so that any folder of prose
can be tuned on.
"""

from __future__ import annotations

from collections.abc import Iterator

from lmworks.data.documents import Document
from lmworks.data.drawing.base import (
    Pair,
    before_list,
    clean,
    first_sentences,
    is_good_answer,
    paragraphs,
    phrase,
    sentences,
)

_CONTINUE = ("Continue: {}", "What comes after this? {}", "Go on from here: {}")
_MAX_PER_DOCUMENT = 60
_MIN_WORDS, _MAX_WORDS = 6, 40


def draw(document: Document) -> Iterator[Pair]:
    """The opening of the document, then pairs of neighbouring sentences."""
    blocks = paragraphs(document.text)
    if blocks and (answer := first_sentences(blocks[0])):
        yield Pair(question=f"How does {document.title} begin?", answer=answer)
    drawn = 0
    for block in blocks:
        said = [sentence.strip() for sentence in sentences(clean(before_list(block)))]
        # Every second one, so that no sentence is both asked about and an answer.
        for one, following in zip(said[::2], said[1::2], strict=False):
            if _MIN_WORDS <= len(one.split()) <= _MAX_WORDS and is_good_answer(following):
                yield Pair(question=phrase(_CONTINUE, one), answer=following)
                drawn += 1
                if drawn == _MAX_PER_DOCUMENT:
                    return
