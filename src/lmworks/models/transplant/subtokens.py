"""Every new token begins as the mean of the old tokens that spell it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lmworks.models.transplant.base import Auxiliary, Relation


def subtokens(
    old: torch.Tensor, relation: Relation, auxiliary: Auxiliary | None, *, seed: int
) -> torch.Tensor:
    """The mean of the rows of each token's pieces; the mean of all rows where it has none.

    Returns: (M, D).
    Source: Gee et al. 2022, "Fast vocabulary transfer for language model compression" (FVT),
        arXiv 2402.09977, section 3.
    """
    return weighted_pieces(old, relation, [[1 / max(1, len(p))] * len(p) for p in relation.pieces])


def weighted_pieces(
    old: torch.Tensor, relation: Relation, weights: list[list[float]]
) -> torch.Tensor:
    """(M, D) sums of each token's pieces with the weights given; the mean of all without pieces."""
    import torch

    rows = old.mean(0).repeat(len(relation.pieces), 1)
    spelt = [i for i, pieces in enumerate(relation.pieces) if pieces]
    if not spelt:
        return rows
    ids = torch.tensor([i for at in spelt for i in relation.pieces[at]])
    factors = torch.tensor([w for at in spelt for w in weights[at]], dtype=old.dtype)
    places = [n for n, at in enumerate(spelt) for _ in relation.pieces[at]]
    sums = torch.zeros(len(spelt), old.shape[1], dtype=old.dtype)
    sums.index_add_(0, torch.tensor(places), old[ids] * factors[:, None])
    rows[torch.tensor(spelt)] = sums
    return rows
