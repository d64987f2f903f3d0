"""Every new token begins as the mean of all old ones: it disturbs no prediction much."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lmworks.models.transplant.base import Auxiliary, Relation


def mean(
    old: torch.Tensor, relation: Relation, auxiliary: Auxiliary | None, *, seed: int
) -> torch.Tensor:
    """The mean of the old rows, once for each missing token.

    Returns: (M, D).
    Source: Hewitt 2021, "Initializing new word embeddings for pretrained language models".
        Differs: no small noise around the mean; training would part equal rows by themselves.
    """
    return old.mean(0).expand(len(relation.missing), -1).clone()
