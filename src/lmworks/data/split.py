"""Training and held-out: whole groups go one way or the other, by a coin that never changes.

A corpus of few large documents is first cut at paragraph borders, each piece a group of its own:
else there would be nothing, or far too much, to hold out.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from lmworks.data.documents import Document, stable_id, stable_share

_FEW_GROUPS = 24
_MIN_PIECE_CHARACTERS = 400


def split_heldout(
    documents: Sequence[Document], *, share: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """(training, held-out), both in a shuffled order that depends only on ids and the seed.

    Args:
        share: of the bytes to hold out, about; at least one group, never all of them.
    """
    sizes: dict[str, int] = defaultdict(int)
    for document in documents:
        sizes[document.group] += len(document.text.encode("utf-8", "surrogatepass"))
    wanted, held, chosen = share * sum(sizes.values()), 0, set()
    ranked = sorted(sizes, key=lambda group: (stable_share(str(seed), group), group))
    for group in ranked[: len(ranked) - 1]:
        # A group that is much larger than what is wanted would swallow the training text.
        if chosen and (held >= wanted or held + sizes[group] > 1.5 * wanted):
            continue
        chosen.add(group)
        held += sizes[group]
    ordered = sorted(documents, key=lambda d: (stable_share(str(seed), d.id), d.id))
    train = [d for d in ordered if d.group not in chosen]
    return train, [d for d in ordered if d.group in chosen]


def cut_large(documents: Sequence[Document]) -> list[Document]:
    """With few groups, documents in pieces of whole paragraphs, about 5 dozen in all."""
    if len({document.group for document in documents}) >= _FEW_GROUPS:
        return list(documents)
    total = sum(len(document.text) for document in documents)
    size = max(_MIN_PIECE_CHARACTERS, total // 60)
    return [piece for document in documents for piece in _pieces(document, size)]


def _pieces(document: Document, size: int) -> Iterable[Document]:
    texts: list[str] = []
    for paragraph in _paragraphs(document.text, size):
        if texts and len(texts[-1]) < size:
            texts[-1] += paragraph
        else:
            texts.append(paragraph)
    if len(texts) < 2:
        return [document]
    return [
        dataclasses.replace(
            document,
            id=stable_id(document.id, str(number)),
            group=f"{document.group}#{number}",
            title=f"{document.title} ({number})",
            text=text,
        )
        for number, text in enumerate(texts, start=1)
    ]


def _paragraphs(text: str, size: int) -> Iterable[str]:
    """Paragraphs with the empty lines after them; one without end is cut after sentences."""
    for paragraph in re.findall(r".+?(?:\n\s*\n|\Z)", text, re.DOTALL):
        if len(paragraph) <= 2 * size:
            yield paragraph
        else:
            yield from re.findall(
                rf".{{1,{size}}}(?:[.!?\n]\s*|\Z|\s)|.{{1,{size}}}", paragraph, re.DOTALL
            )
