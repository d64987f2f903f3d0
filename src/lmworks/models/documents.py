"""Packed rows: several documents in one, none of which may know of the others.

Documents are taken out of their rows and read as rows of their own, those of one length together:
attention then computes no score that a mask would throw away, and a recurrent layer begins each
document with an empty state without knowing that there are others. Rows are cut and joined whole,
never gathered token by token, whose gradient is slow on a CPU.

Each call of attention is cheap, so its documents share one only if they are of the same length. The
calls of a recurrent layer are not, so theirs may be a fifth padding, behind the shorter documents,
where a causal layer never looks.

Measured beside the other exact ways (bench/packed_documents.py, docs/log.md): a mask over the whole
row costs more the longer the row is; gathering documents into padded rows costs more than it saves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Bucket:
    """Documents that are read together, n rows of L tokens.

    Attributes:
        documents: their numbers, in the order of the rows.
        length: L.
        padding: of each, the places behind its end.
        memo: what the layers of one forward share, such as masks.
    """

    documents: list[int]
    length: int
    padding: list[int]
    memo: dict[Any, Any] = field(default_factory=dict)


class Documents:
    """The documents of a batch of packed rows.

    Args:
        numbers: (B, T) int; tokens of a row with the same number are of one document, in their
            order.
    """

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers
        low, high = torch.aminmax(numbers)
        rows = torch.arange(len(numbers), device=numbers.device)[:, None]
        keys = (numbers - low + rows * (high - low + 1)).flatten()
        # Tokens document by document: where each stands, and the sizes of the documents.
        runs, self._sizes = torch.unique_consecutive(keys, return_counts=True)
        self._order: torch.Tensor | None = None
        if len(runs.unique()) < len(runs):  # a document lies in pieces
            self._order = torch.argsort(keys, stable=True)
            _, self._sizes = torch.unique_consecutive(keys[self._order], return_counts=True)
        self._lengths: list[int] = self._sizes.tolist()
        self._buckets: dict[bool, list[Bucket]] = {}

    @functools.cached_property
    def positions(self) -> torch.Tensor:
        """(B, T): where each token stands in its document."""
        starts = (self._sizes.cumsum(0) - self._sizes).repeat_interleave(self._sizes)
        return self._spread(torch.arange(len(starts), device=starts.device) - starts)

    @functools.cached_property
    def lengths(self) -> torch.Tensor:
        """(B, T): how long each token's document is."""
        return self._spread(self._sizes.repeat_interleave(self._sizes))

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values in the order of the documents, put where their tokens are."""
        if self._order is not None:
            values = torch.empty_like(values).scatter_(0, self._order, values)
        return values.view_as(self.numbers)

    @functools.cached_property
    def _back(self) -> torch.Tensor:
        """(B T,): where each token is in the order of the documents."""
        assert self._order is not None
        places = torch.arange(len(self._order), device=self._order.device)
        return torch.empty_like(places).scatter_(0, self._order, places)

    def buckets(self, *, padded: bool) -> list[Bucket]:
        """The documents by length, the shortest first; `padded`: of about one length together."""
        if padded not in self._buckets:
            found: dict[int, list[int]] = {}
            for index, size in enumerate(self._lengths):
                found.setdefault(row_length(size) if padded else size, []).append(index)
            self._buckets[padded] = [self._bucket(found[size]) for size in sorted(found)]
        return self._buckets[padded]

    def _bucket(self, documents: list[int]) -> Bucket:
        length = max(self._lengths[i] for i in documents)
        return Bucket(documents, length, [length - self._lengths[i] for i in documents])

    def apart(
        self, read: Callable[..., torch.Tensor], *tensors: torch.Tensor, padded: bool = False
    ) -> torch.Tensor:
        """What `read` makes of each document by itself, put back where the tokens stand.

        Args:
            read: called as read(bucket, *rows) with rows (n, L, ...) of each of the tensors; gives
                (n, L, ...), in which padding is not looked at.
            tensors: (B, T, ...).
            padded: whether rows may be padded, so that calls are few.
        Returns: (B, T, ...).
        """
        pieces = [self._pieces(tensor) for tensor in tensors]
        found: list[Any] = [None] * len(self._lengths)
        for bucket in self.buckets(padded=padded):
            rows = [_rows(bucket, [some[i] for i in bucket.documents]) for some in pieces]
            y = read(bucket, *rows)
            for index, part in zip(bucket.documents, _parts(bucket, y), strict=True):
                found[index] = part
        joined = torch.cat(found)
        if self._order is not None:
            joined = joined.index_select(0, self._back)
        return joined.unflatten(0, self.numbers.shape)

    def _pieces(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, T, ...) as one (length, ...) for each document."""
        flat = tensor.flatten(0, 1)
        if self._order is not None:
            flat = flat.index_select(0, self._order)
        return flat.split(self._lengths)


def _rows(bucket: Bucket, pieces: list[torch.Tensor]) -> torch.Tensor:
    """Documents (length, ...) as rows (n, L, ...)."""
    if len(pieces) == 1:
        return pieces[0][None]
    if any(bucket.padding):
        blank = pieces[0].new_zeros(max(bucket.padding), *pieces[0].shape[1:])
        pieces = [p for piece, size in zip(pieces, bucket.padding) for p in (piece, blank[:size])]
    return torch.cat(pieces).unflatten(0, (len(bucket.documents), bucket.length))


def _parts(bucket: Bucket, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows (n, L, ...) as documents again, their padding left out."""
    if not any(bucket.padding):
        return rows.unbind(0)
    sizes = [s for padding in bucket.padding for s in (bucket.length - padding, padding)]
    return rows.flatten(0, 1).split(sizes)[::2]


def row_length(size: int) -> int:
    """The length of the row that a document of `size` tokens is read in: 1.25, 1.5, 1.75, 2 ..."""
    step = max(1, (1 << (size - 1).bit_length()) // 8) if size > 1 else 1
    return -(-size // step) * step
