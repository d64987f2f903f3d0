"""The seam: a filter says why a document should go, or nothing.

Sources of the rules: Gopher (Rae et al. 2021, arXiv 2112.11446, table A1) and C4 (Raffel et al.
2020, section 2.2). Their thresholds are for web pages; these here are wider, so that short
docstrings, tables and code stay, and catch what no reader would call text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lmworks.core.tables import load_target
from lmworks.data.documents import Document, Dropped

FILTERS: dict[str, str] = {
    "too_short": "lmworks.data.filters.length:too_short",
    "word_length": "lmworks.data.filters.words:word_length",
    "few_letters": "lmworks.data.filters.words:few_letters",
    "repeated_lines": "lmworks.data.filters.repetition:repeated_lines",
    "repeated_words": "lmworks.data.filters.repetition:repeated_words",
    "boilerplate": "lmworks.data.filters.boilerplate:boilerplate",
}

Filter = Callable[[Document], str | None]  # the evidence, or None to keep


def drop_poor(rows: Iterable[Document | Dropped]) -> Iterator[Document | Dropped]:
    """Each document, or the first rule that drops it and the evidence."""
    filters: dict[str, Filter] = {name: load_target(target) for name, target in FILTERS.items()}
    for row in rows:
        yield row if isinstance(row, Dropped) else _judge(row, filters)


def _judge(document: Document, filters: dict[str, Filter]) -> Document | Dropped:
    for name, judge in filters.items():
        if evidence := judge(document):
            return Dropped(
                id=document.id,
                source=document.source,
                title=document.title,
                rule=name,
                evidence=evidence,
            )
    return document
