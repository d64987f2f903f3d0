"""Training and held-out: whole groups go one way or the other, by a coin that never changes.

A group's side depends on its name and the seed alone, so a corpus that grows keeps what it held
out. The price is that the share is met only on average. Three exceptions keep small corpora usable:
a group of over a quarter of the text is not held out; when no coin says "hold out", the group
whose coin came closest is taken; and where the share means fewer than 8 groups it is raised, up to
a sixth, since an interval needs groups to stand on (a corpus that grows past this gives some of
what it held out back to training, never the reverse).

A corpus of few documents is first cut at paragraph borders, each piece a group of its own: else
there would be nothing, or far too much, to hold out. See `split_by_paragraphs`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol, TypeVar

from lmworks.data.documents import Document, stable_id, stable_share
from lmworks.data.leakage import paragraphs_with_gaps

FEW_GROUPS = 24
_LARGEST_HELD_OUT = 0.25
_ENOUGH_GROUPS, _LARGEST_SHARE = 8, 1 / 6
_MIN_PIECE_CHARACTERS, _MAX_PIECE_CHARACTERS = 300, 16_000
_PIECES_PER_DOCUMENT = 60


class Named(Protocol):
    """What has an id."""

    @property
    def id(self) -> str:
        """Unlike that of any other."""


N = TypeVar("N", bound=Named)


def heldout_groups(sizes: Mapping[str, int], *, share: float, seed: int) -> set[str]:
    """The groups to hold out: at least one, never all. Of a single group, none.

    Args:
        sizes: bytes of each group.
        share: of the groups to hold out, between 0 and 1.
    """
    if len(sizes) < 2:
        return set()
    share = max(share, min(_LARGEST_SHARE, _ENOUGH_GROUPS / len(sizes)))
    coins = {group: stable_share("heldout", str(seed), group) for group in sizes}
    most = _LARGEST_HELD_OUT * sum(sizes.values())
    ranked = sorted(sizes, key=lambda group: (coins[group], group))
    small = [group for group in ranked if sizes[group] <= most]
    if not small:
        return {min(sizes, key=lambda group: (sizes[group], group))}
    chosen = {group for group in small if coins[group] < share} or {small[0]}
    return chosen if len(chosen) < len(sizes) else chosen - {ranked[-1]}


def shuffled(items: Iterable[N], *, seed: int) -> list[N]:
    """An order that depends only on ids and the seed."""
    return sorted(items, key=lambda item: (stable_share("order", str(seed), item.id), item.id))


def split_by_paragraphs(
    documents: Sequence[Document], *, share: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """(training, held-out) pieces of few documents, in the documents' order.

    Neighbours that fall on the same side are joined again, so that a text stays as whole as it
    can.
    """
    pieces = [piece for document in documents for piece in cut(document)]
    sizes = {piece.group: piece.num_bytes for piece in pieces}
    chosen = heldout_groups(sizes, share=share, seed=seed)
    train: list[Document] = []
    heldout: list[Document] = []
    runs = groupby(pieces, key=lambda piece: (piece.source, piece.group in chosen))
    for (_, is_heldout), run in runs:
        (heldout if is_heldout else train).append(_joined(list(run)))
    return train, heldout


def cut(document: Document) -> list[Document]:
    """A document in pieces of whole paragraphs, about 60 of them; their texts make up the whole."""
    size = len(document.text) // _PIECES_PER_DOCUMENT
    size = min(_MAX_PIECE_CHARACTERS, max(_MIN_PIECE_CHARACTERS, size))
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
            text=text,
        )
        for number, text in enumerate(texts, start=1)
    ]


def _joined(run: Sequence[Document]) -> Document:
    return dataclasses.replace(run[0], text="".join(piece.text for piece in run))


def _paragraphs(text: str, size: int) -> Iterator[str]:
    """Paragraphs with the empty lines after them; one without end is cut after sentences."""
    for paragraph in paragraphs_with_gaps(text):
        if len(paragraph) <= 2 * size:
            yield paragraph
        else:
            yield from re.findall(
                rf".{{1,{size}}}(?:[.!?\n]\s*|\Z|\s)|.{{1,{size}}}", paragraph, re.DOTALL
            )
