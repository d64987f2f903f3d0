"""Exact duplicates: the first document keeps its place, later ones are dropped and name it.

Texts count as equal when they differ only in spaces, line breaks and case. Memory is one hash and
one name a document. Left out: near duplicates, and paragraphs that several documents share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from lmworks.data.documents import Document, Dropped


def drop_duplicates(rows: Iterable[Document | Dropped]) -> Iterator[Document | Dropped]:
    """Each document, or why it is dropped; what is dropped already passes through."""
    kept: dict[bytes, tuple[str, str]] = {}
    for row in rows:
        if isinstance(row, Dropped):
            yield row
            continue
        digest = text_digest(row.text)
        if first := kept.get(digest):
            number, source = first
            yield Dropped.of(row, "duplicate", f"same text as {number} ({source})")
        else:
            kept[digest] = (row.id, f"{row.title} of {row.source}")
            yield row


def text_digest(text: str) -> bytes:
    """A hash that does not see spaces, line breaks and case."""
    normal = " ".join(text.split()).casefold()
    return hashlib.sha256(normal.encode("utf-8", "replace")).digest()
