"""What any prose gives: how a document opens, and how its sentences go on.

Weak questions, drawn only from documents that nothing better could be drawn from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from lmworks.data.documents import Document
from lmworks.data.drawing.base import (
    Pair,
    clean,
    first_sentences,
    is_good_answer,
    paragraphs,
    sentences,
)

_MAX_PER_DOCUMENT = 40
_QUOTED_WORDS = 8


def draw(document: Document) -> Iterator[Pair]:
    """The opening of the document, then pairs of neighbouring sentences."""
    blocks = paragraphs(document.text)
    if blocks and (answer := first_sentences(blocks[0])):
        yield Pair(question=f"How does {document.title} begin?", answer=answer)
    drawn = 0
    for block in blocks:
        said = [sentence.strip() for sentence in sentences(clean(block))]
        for one, following in itertools.pairwise(said):
            words = one.split()
            if len(words) < _QUOTED_WORDS or not is_good_answer(following):
                continue
            start = " ".join(words[-_QUOTED_WORDS:])
            yield Pair(question=f'What comes after "{start}"?', answer=following)
            drawn += 1
            if drawn == _MAX_PER_DOCUMENT:
                return
