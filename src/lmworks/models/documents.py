"""Packed rows: several documents in one, none of which may know of the others.

Documents are taken out of their rows, those of about one length together, and read as rows of
their own: attention then computes no score that a mask would throw away, and a recurrent layer
begins each document with an empty state without knowing that there are others. What stands behind
a shorter document is padding, which causal layers never see and others are told of. There are at
most four sizes of row between a power of two and the next, so that padding is a fifth at most and
the calls are few however many documents there are.

Measured against the two other exact ways on two CPU threads (docs/log.md, 2026-11-28): a mask over
the whole row costs more the longer the row is, a call for each document costs more the shorter the
documents are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Bucket:
    """Documents that are read together, n rows of at most L tokens.

    Attributes:
        tokens: (n, L) int64, where each token stands among all B T; padding repeats another.
        real: (n, L) bool, True where no padding is; None where all is real.
        memo: what the layers of one forward share, such as masks.
    """

    tokens: torch.Tensor
    real: torch.Tensor | None
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
        self._order = torch.argsort(keys, stable=True)
        _, self._sizes = torch.unique_consecutive(keys[self._order], return_counts=True)
        self._starts = self._sizes.cumsum(0) - self._sizes

    @functools.cached_property
    def positions(self) -> torch.Tensor:
        """(B, T): where each token stands in its document."""
        ranks = torch.arange(len(self._order), device=self._order.device)
        return self._spread(ranks - self._starts.repeat_interleave(self._sizes))

    @functools.cached_property
    def lengths(self) -> torch.Tensor:
        """(B, T): how long each token's document is."""
        return self._spread(self._sizes.repeat_interleave(self._sizes))

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values in the order of the documents, put where their tokens are."""
        return torch.empty_like(values).scatter_(0, self._order, values).view_as(self.numbers)

    @functools.cached_property
    def buckets(self) -> list[Bucket]:
        """The documents by length, the shortest first."""
        found: dict[int, list[int]] = {}
        for index, size in enumerate(self._sizes.tolist()):
            found.setdefault(row_length(size), []).append(index)
        return [self._bucket(found[length]) for length in sorted(found)]

    def _bucket(self, chosen: Sequence[int]) -> Bucket:
        index = torch.tensor(chosen, device=self._order.device)
        sizes, starts = self._sizes[index, None], self._starts[index, None]
        places = torch.arange(int(sizes.max()), device=self._order.device)
        real = places < sizes
        tokens = self._order[starts + places.minimum(sizes - 1)]
        return Bucket(tokens, None if bool(real.all()) else real)

    @functools.cached_property
    def _back(self) -> torch.Tensor:
        """(B T,): where each token's row is among the buckets' real ones, one behind the other."""
        real = [b.tokens.flatten() if b.real is None else b.tokens[b.real] for b in self.buckets]
        order = torch.cat(real)
        return torch.empty_like(order).scatter_(
            0, order, torch.arange(len(order), device=order.device)
        )

    def apart(
        self, read: Callable[..., torch.Tensor], *tensors: torch.Tensor
    ) -> torch.Tensor:
        """What `read` makes of each document by itself, put back where the tokens stand.

        Args:
            read: called as read(bucket, *rows) with rows (n, L, ...) of each of the tensors; gives
                (n, L, ...), in which padding is not looked at.
            tensors: (B, T, ...).
        Returns: (B, T, ...).
        """
        flat = [tensor.flatten(0, 1) for tensor in tensors]
        found = []
        for bucket in self.buckets:
            shape, index = bucket.tokens.shape, bucket.tokens.flatten()
            rows = (tensor.index_select(0, index).unflatten(0, shape) for tensor in flat)
            y = read(bucket, *rows)
            found.append(y.flatten(0, 1) if bucket.real is None else y[bucket.real])
        return torch.cat(found).index_select(0, self._back).unflatten(0, self.numbers.shape)


def row_length(size: int) -> int:
    """The length of the row that a document of `size` tokens is read in: 1.25, 1.5, 1.75, 2 ..."""
    step = max(1, (1 << (size - 1).bit_length()) // 8) if size > 1 else 1
    return -(-size // step) * step
