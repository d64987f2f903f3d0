"""Another end for a trained model: a reward, classes or a vector in place of the vocabulary."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from lmworks.models.config import LMHeadConfig
from lmworks.models.heads import PooledHead, build_head
from lmworks.models.skeleton import skeleton

if TYPE_CHECKING:
    from lmworks.models.config import HeadConfig
    from lmworks.models.model import Model


def with_head(model: Model, head: HeadConfig | None, *, seed: int = 0) -> Model:
    """The layers of `model` under another head; it shares their memory.

    Args:
        head: what it shall end in; None ends in states.
        seed: of the new head's weights.
    Returns: a model in eval mode. `model` itself if it has that head already.
    """
    if model.config.head == head:
        return model
    tied = isinstance(head, LMHeadConfig)  # the only matrix to the vocabulary that is there
    config = dataclasses.replace(model.config, head=head, tie_word_embeddings=tied)
    new = skeleton(config)
    new.head = build_head(config)
    if isinstance(new.head, PooledHead):
        new.head.reset_parameters(torch.Generator().manual_seed(seed))
    wanted = {name for name, _ in new.named_parameters() if not name.startswith("head.")}
    state = {name: value for name, value in model.state_dict().items() if name in wanted}
    new.load_state_dict(state, strict=False, assign=True)
    return new.requires_grad_(True).eval()
