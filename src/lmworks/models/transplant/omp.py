"""Every new token begins as the sparse sum of shared tokens that rebuilds it in another space.

The other space is a donor model's embedding, which has a row for the new token, or the static
embedding of text. The same few shared tokens, with the same factors, then stand for it here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmworks.models.transplant.focus import known
from lmworks.models.transplant.subtokens import subtokens

if TYPE_CHECKING:
    import torch

    from lmworks.models.transplant.base import Auxiliary, Relation

NUM_ATOMS = 64
_SCORES_AT_ONCE = 1 << 24  # 64 MB of correlations
_DONE = 1e-6  # of the target's length: what is left then is rounding


def omp(
    old: torch.Tensor, relation: Relation, auxiliary: Auxiliary | None, *, seed: int
) -> torch.Tensor:
    """Orthogonal matching pursuit over the shared tokens, up to 64 of them for each new one.

    A token without a vector in the other space is the mean of its pieces.
    Returns: (M, D).
    Source: Goddard and Fernandes Neto 2025, arXiv 2506.06607, section 3. Differs: without a donor
        the other space is static_embedding.py's, which the paper does not try.
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
    dictionary = auxiliary.new[anchors]
    targets = old[torch.from_numpy(relation.shared)[anchors]]
    num_atoms = min(NUM_ATOMS, len(anchors), dictionary.shape[1])
    for part in places.split(max(1, _SCORES_AT_ONCE // len(anchors))):
        atoms, factors = pursue(dictionary, auxiliary.new[wanted[part]], num_atoms)
        rows[part] = (factors[:, :, None] * targets[atoms]).sum(1)
    return rows


def pursue(
    dictionary: torch.Tensor, wanted: torch.Tensor, num_atoms: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each wanted vector as a sum of at most `num_atoms` rows of the dictionary.

    Args:
        dictionary: (S, K), no row zero.
        wanted: (B, K).
    Returns: (B, num_atoms) rows taken, and their factors, zero where fewer are needed.
    Source: Pati et al. 1993, "Orthogonal matching pursuit"; the factors by QR (Gram-Schmidt, done
        twice so that rounding does not add up).
    """
    import torch

    size, width = len(wanted), dictionary.shape[1]
    directions = torch.nn.functional.normalize(dictionary, dim=1)
    basis = torch.zeros(size, num_atoms, width)
    upper = torch.eye(num_atoms).repeat(size, 1, 1)  # dictionary[atoms] = upper.T @ basis
    along = torch.zeros(size, num_atoms)
    atoms = torch.zeros(size, num_atoms, dtype=torch.long)
    rest, lengths = wanted.clone(), wanted.norm(dim=1)
    for step in range(num_atoms):
        chosen = (rest @ directions.T).abs().argmax(1)
        vector = dictionary[chosen]
        part = vector
        for _ in range(2):
            inside = torch.einsum("bsk,bk->bs", basis, part)
            part = part - torch.einsum("bs,bsk->bk", inside, basis)
        length = part.norm(dim=1)
        # Done when nothing is left to explain, or when the best atom adds nothing to those before.
        active = (rest.norm(dim=1) > _DONE * lengths) & (length > 1e-4 * vector.norm(dim=1))
        new = torch.where(active[:, None], part / length.clamp(min=1e-30)[:, None], 0.0)
        over = torch.einsum("bsk,bk->bs", basis, vector)[:, :step]
        upper[:, :step, step] = torch.where(active[:, None], over, 0.0)
        upper[:, step, step] = torch.where(active, length, 1.0)
        basis[:, step], atoms[:, step] = new, chosen
        along[:, step] = (rest * new).sum(1)
        rest = rest - along[:, step, None] * new
    factors = torch.linalg.solve_triangular(upper, along[:, :, None], upper=True)[:, :, 0]
    return atoms, factors
