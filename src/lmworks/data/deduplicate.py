"""Exact duplicates: the first document keeps its place, later ones are dropped and name it.

Texts count as equal when they differ only in spaces, line breaks and case.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from lmworks.data.documents import Document, Dropped


def drop_duplicates(rows: Iterable[Document | Dropped]) -> Iterator[Document | Dropped]:
    """Each document, or why it is dropped; what is dropped already passes through."""
    kept: dict[bytes, Document] = {}
    for row in rows:
        if isinstance(row, Dropped):
            yield row
            continue
        first = kept.setdefault(_digest(row.text), row)
        if first is row:
            yield row
        else:
            yield Dropped(
                id=row.id,
                source=row.source,
                title=row.title,
                rule="duplicate",
                evidence=f"same text as {first.id} ({first.title})",
            )


def _digest(text: str) -> bytes:
    normal = " ".join(text.split()).casefold()
    return hashlib.sha256(normal.encode("utf-8", "surrogatepass")).digest()
