"""Rows drawn at random, with the spread of the old ones: the baseline that others must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lmworks.models.transplant.base import Auxiliary, Relation


def random_normal(
    old: torch.Tensor, relation: Relation, auxiliary: Auxiliary | None, *, seed: int
) -> torch.Tensor:
    """Normal draws with mean and standard deviation of the old rows, dimension by dimension.

    Returns: (M, D).
    Source: the usual baseline, for example in Dobler and de Melo 2023, arXiv 2305.14481, sec. 4.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(relation.missing), old.shape[1], generator=generator)
    return old.mean(0) + old.std(0, correction=0) * noise
