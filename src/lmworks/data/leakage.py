"""Paragraphs that stand in training and in held-out documents are taken out of the held-out ones.

Manuals quote themselves: the page of a statement stands again in the chapter that holds it. Left
in, the figures on held-out text would reward learning by heart. Memory is a hash for each held-out
paragraph. Left out: paragraphs that were reworded.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator

from lmworks.data.deduplicate import text_digest
from lmworks.data.documents import Document, Dropped

_MIN_WORDS = 5  # shorter ones ("Return None.") are phrases of the language, not content
_EMPTY_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


def paragraphs_with_gaps(text: str) -> Iterator[str]:
    """Paragraphs, each with the empty lines after it: put together they are the text."""
    start = 0
    for gap in _EMPTY_LINES.finditer(text):
        yield text[start : gap.end()]
        start = gap.end()
    if start < len(text):
        yield text[start:]


class Leakage:
    """Knows the paragraphs of the held-out documents, then which of them training shows."""

    def __init__(self, heldout: Iterable[Document]) -> None:
        self._heldout = {digest for d in heldout for _, digest in _content(d) if digest}
        self._shared: set[bytes] = set()

    def watch(self, train: Iterable[Document]) -> Iterator[Document]:
        """The same documents; their paragraphs are noted as they pass."""
        for document in train:
            yield document
            self._shared.update(
                digest for _, digest in _content(document) if digest in self._heldout
            )

    def without(self, document: Document) -> Document | Dropped:
        """A held-out document less what training shows; dropped if that is over half of it."""
        kept = [text for text, digest in _content(document) if digest not in self._shared]
        if sum(map(len, kept)) == len(document.text):
            return document
        share = 1 - sum(map(len, kept)) / len(document.text)
        if share > 0.5:
            return Dropped.of(document, "in_training", f"{share:.0%} of it is in training texts")
        return dataclasses.replace(document, text="".join(kept).strip() + "\n")


def _content(document: Document) -> Iterator[tuple[str, bytes]]:
    """Paragraphs with their hashes; an empty one for those too short to count."""
    for text in paragraphs_with_gaps(document.text):
        yield text, text_digest(text) if len(text.split()) >= _MIN_WORDS else b""
