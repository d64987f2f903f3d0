"""Every new token begins between the tokens that spell it and those that are used like it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lmworks.models.transplant.focus import known, unit
from lmworks.models.transplant.subtokens import subtokens, weighted_pieces

if TYPE_CHECKING:
    import torch

    from lmworks.models.transplant.base import Auxiliary, Relation

TEMPERATURE = 0.3  # of both weightings
NUM_NEIGHBOURS = 3
GLOBAL_WEIGHT = 0.3  # of the neighbours against the pieces
_SCORES_AT_ONCE = 1 << 24  # 64 MB of similarities


def tokenadapt(
    old: torch.Tensor, relation: Relation, auxiliary: Auxiliary | None, *, seed: int
) -> torch.Tensor:
    """(1 - w) x a weighted mean of the pieces + w x one of the nearest old tokens.

    Pieces weigh by their similarity to the whole and by their share of its bytes; neighbours by
    their similarity. A token without a vector is the plain mean of its pieces, one without pieces
    is its neighbours alone.
    Returns: (M, D).
    Source: Sharthak et al. 2025, arXiv 2505.09738, sections 3.1 to 3.3; temperature, neighbours
        and weight are the defaults of the authors' release. Differs: vectors come from
        static_embedding.py, not from a text encoder, so there is no threshold of similarity.
    """
    import torch

    assert auxiliary is not None
    local = weighted_pieces(old, relation, _piece_weights(relation, auxiliary))
    vectors = auxiliary.new[torch.from_numpy(relation.missing)]
    places = known(vectors).nonzero()[:, 0]
    candidates = torch.from_numpy(np.flatnonzero(relation.plain))
    candidates = candidates[known(auxiliary.old[candidates])]
    rows = subtokens(old, relation, None, seed=seed)
    if not len(places) or not len(candidates):
        return rows
    space = unit(auxiliary.old[candidates])
    spelt = torch.tensor([bool(pieces) for pieces in relation.pieces])
    for part in places.split(max(1, _SCORES_AT_ONCE // len(candidates))):
        similarity = unit(vectors[part]) @ space.T
        best = similarity.topk(min(NUM_NEIGHBOURS, len(candidates)), dim=1)
        weights = (best.values / TEMPERATURE).softmax(1)
        near = (weights[:, :, None] * old[candidates[best.indices]]).sum(1)
        share = torch.where(spelt[part], GLOBAL_WEIGHT, 1.0)[:, None]
        rows[part] = (1 - share) * local[part] + share * near
    return rows


def _piece_weights(relation: Relation, auxiliary: Auxiliary) -> list[list[float]]:
    """(M) weights of each token's pieces; they sum to 1."""
    new, old = unit(auxiliary.new).numpy(), unit(auxiliary.old).numpy()
    weights = []
    for token, pieces in zip(relation.missing, relation.pieces):
        ids = list(pieces)
        alike = _softmax(old[ids] @ new[token])
        widths = relation.widths[ids]
        share = widths / max(1, widths.sum())
        weights.append(_softmax((alike + share) / 2).tolist())
    return weights


def _softmax(scores: np.ndarray) -> np.ndarray:
    if not len(scores):
        return scores
    powers = np.exp((scores - scores.max()) / TEMPERATURE)
    found: np.ndarray = powers / powers.sum()
    return found
