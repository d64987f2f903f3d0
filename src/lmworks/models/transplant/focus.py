"""Every new token begins as a mix of the few shared tokens that are used like it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmworks.models.transplant.sparsemax import sparsemax
from lmworks.models.transplant.subtokens import subtokens

if TYPE_CHECKING:
    import torch

    from lmworks.models.transplant.base import Auxiliary, Relation

_SCORES_AT_ONCE = 1 << 24  # 64 MB of similarities


def focus(
    old: torch.Tensor, relation: Relation, auxiliary: Auxiliary | None, *, seed: int
) -> torch.Tensor:
    """Sparsemax of cosine similarities to the shared tokens, as weights of their old rows.

    Returns: (M, D).
    Source: Dobler and de Melo 2023, arXiv 2305.14481, section 3. Differs: the auxiliary vectors
        come from static_embedding.py, not fastText; a token without one is the mean of its pieces,
        not a random row.
    """
    import torch

    assert auxiliary is not None
    rows = subtokens(old, relation, None, seed=seed)
    anchors = torch.from_numpy(relation.anchors)
    anchors = anchors[known(auxiliary.new[anchors])]
    wanted = torch.from_numpy(relation.missing)
    places = known(auxiliary.new[wanted]).nonzero()[:, 0]
    if not len(anchors) or not len(places):
        return rows
    targets = old[torch.from_numpy(relation.shared)[anchors]]
    space = unit(auxiliary.new[anchors])
    for part in places.split(max(1, _SCORES_AT_ONCE // len(anchors))):
        similarity = unit(auxiliary.new[wanted[part]]) @ space.T
        rows[part] = sparsemax(similarity) @ targets
    return rows


def known(vectors: torch.Tensor) -> torch.Tensor:
    """(B, K) -> (B,) bool: which have a vector."""
    return (vectors != 0).any(1)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """(B, K) -> the same directions with length 1; zero stays zero."""
    import torch

    return torch.nn.functional.normalize(vectors, dim=1)
