"""The cut itself: a model with the rows of another vocabulary.

All other weights are the old model's own tensors, not copies. A head that is tied to the embedding
stays tied; one of its own gets its rows by the same method from the old head. The heads here have
no bias. Rows that only fill the vocabulary up to a multiple are the mean of all rows.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.model import Model
from lmworks.models.skeleton import skeleton
from lmworks.models.transplant.base import NEED_AUXILIARY, Auxiliary, Relation, method, no_space

_MATRICES = ("embed_tokens.weight", "lm_head.weight")


def transplant(
    model: Model,
    relation: Relation,
    name: str,
    *,
    auxiliary: Auxiliary | None = None,
    seed: int = 0,
    pad_to_multiple_of: int = 1,
) -> Model:
    """The model with an embedding and head for the new vocabulary.

    Args:
        name: a method of `METHODS`.
        auxiliary: what some methods compare tokens in.
        pad_to_multiple_of: the number of rows is a multiple of it.
    Returns: a model in eval mode; where all its ids were there before, with the same logits.
    Raises: UserError for an unknown method, a missing auxiliary space, a packed model, or a
        tokenizer with more tokens than the model has rows.
    """
    make_rows = method(name)
    if name in NEED_AUXILIARY and auxiliary is None:
        raise no_space(name)
    if pad_to_multiple_of < 1:
        raise UserError(f"pad_to_multiple_of = {pad_to_multiple_of}: a number from 1 up")
    _check(model, relation)
    rows = len(relation.shared)
    rows += -rows % pad_to_multiple_of
    state = dict(model.named_parameters())
    for number, key in enumerate(_MATRICES):
        if key in state:
            old = state[key].detach()[: relation.num_old]
            made = make_rows(old, relation, auxiliary, seed=seed + number)
            state[key] = nn.Parameter(_matrix(old, relation, made, rows))
    changed = skeleton(dataclasses.replace(model.config, vocab_size=rows))
    changed.load_state_dict(state, assign=True)
    return changed.eval()


def _check(model: Model, relation: Relation) -> None:
    if not isinstance(model.embed_tokens, nn.Embedding):
        raise UserError("a packed model has no rows to change: load it without packed=True")
    if relation.num_old > model.config.vocab_size:
        raise UserError(
            f"the old tokenizer has {relation.num_old} tokens and the model "
            f"{model.config.vocab_size} rows: is this the model's own tokenizer?"
        )
    if not (relation.shared >= 0).any():
        raise UserError("the two tokenizers share no token: nothing of the model would be left")


def _matrix(old: torch.Tensor, relation: Relation, made: torch.Tensor, rows: int) -> torch.Tensor:
    """(rows, D): shared rows copied, missing ones as made, padding the mean."""
    matrix = old.mean(0).repeat(rows, 1)
    there = torch.from_numpy(relation.shared >= 0).nonzero()[:, 0]
    matrix[there] = old[torch.from_numpy(relation.shared)[there]]
    matrix[torch.from_numpy(relation.missing)] = made
    if not bool(torch.isfinite(matrix).all()):
        raise UserError("the method made rows that are not finite: the old ones may be damaged")
    return matrix
