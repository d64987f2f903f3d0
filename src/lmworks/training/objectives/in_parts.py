"""Rows that a loss needs together, computed a few at a time.

What the model makes of a part is computed again when its gradient is wanted, so that only one
part's activations are held at once and the result is that of the whole batch. For in-batch
negatives that is gradient caching.

Source: Gao et al. 2021, arXiv 2101.06983, section 3 (the vectors first, then each part again with
    the vectors' gradients); here torch's checkpointing keeps the vectors and runs the parts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from lmworks.training.batches import Rows

_LOGIT_CELLS = 16_000_000  # logits held at once, 64 MB


# (function, batch) -> the function of all rows, of which other processes compute some.
Share = Callable[[Callable[[Any], torch.Tensor], Rows], torch.Tensor]
_share: Share | None = None


@contextlib.contextmanager
def rows_shared(share: Share) -> Iterator[None]:
    """Meanwhile `in_parts` leaves some of the rows to other processes."""
    global _share
    before, _share = _share, share
    try:
        yield
    finally:
        _share = before


def are_rows_shared() -> bool:
    """Whether other processes compute some of the rows that `in_parts` is asked for."""
    return _share is not None


def in_parts(function: Callable[[Any], torch.Tensor], batch: Rows, size: int) -> torch.Tensor:
    """`function(batch)`, whose first dimension is the rows, `size` rows at a time; 0 for all."""
    if _share is not None:
        return _share(lambda rows: _in_parts(function, rows, size), batch)
    return _in_parts(function, batch, size)


def _in_parts(function: Callable[[Any], torch.Tensor], batch: Rows, size: int) -> torch.Tensor:
    count = batch.num_rows
    if not 0 < size < count:
        return function(batch)
    parts = [batch.rows(start, min(start + size, count)) for start in range(0, count, size)]
    return torch.cat([_later(function, part) for part in parts])


def in_slices(
    function: Callable[..., torch.Tensor], *tensors: torch.Tensor, vocab_size: int
) -> torch.Tensor:
    """`function(*tensors)` of tokens (M, ...) -> (M, ...), so many that their logits are few."""
    rows = max(1, _LOGIT_CELLS // vocab_size)
    if len(tensors[0]) <= rows:
        return function(*tensors)
    slices = zip(*(tensor.split(rows) for tensor in tensors))
    return torch.cat([_later(function, *parts) for parts in slices])


def _later(function: Callable[..., torch.Tensor], *parts: Any) -> torch.Tensor:
    """Computed again for the gradient; without gradients there is nothing to keep."""
    if not torch.is_grad_enabled():
        return function(*parts)
    result: torch.Tensor = checkpoint(function, *parts, use_reentrant=False)
    return result
