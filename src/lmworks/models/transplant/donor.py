"""Another model's embedding as the space in which tokens are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmworks.models.transplant.base import Auxiliary
from lmworks.models.transplant.relation import relate

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.tokenizers.tokenizer import PipelineTokenizer


def donor_space(
    donor: Model,
    tokenizer: PipelineTokenizer,
    old: PipelineTokenizer,
    new: PipelineTokenizer,
) -> Auxiliary:
    """The donor's rows for the tokens of two vocabularies; zero for tokens that it has not.

    Args:
        tokenizer: the donor's; mostly the new tokenizer itself.
    """
    return Auxiliary(new=_rows(donor, tokenizer, new), old=_rows(donor, tokenizer, old))


def _rows(donor: Model, tokenizer: PipelineTokenizer, wanted: PipelineTokenizer) -> torch.Tensor:
    shared = torch.from_numpy(relate(tokenizer, wanted).shared)
    weight = donor.embed_tokens.weight
    assert isinstance(weight, torch.Tensor)
    rows = torch.zeros(len(shared), weight.shape[1])
    rows[shared >= 0] = weight.detach()[shared[shared >= 0]]
    return rows
