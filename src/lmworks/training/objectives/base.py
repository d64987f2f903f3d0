"""The seam: an objective is a function of (model, batch), and a line in this table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from lmworks.models.model import Model
    from lmworks.training.tokens import Batch

OBJECTIVES = {
    "causal": "lmworks.training.objectives.causal:causal",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """What a batch gave.

    Attributes:
        value: (), nats per target token, with its graph.
        num_targets: its weight.
        auxiliary: (), with its graph: what is learnt beside it and is no measure of the text, such
            as a router's balance; None if nothing is.
        metrics: figures to show and to keep with the history.
    """

    value: torch.Tensor
    num_targets: int
    auxiliary: torch.Tensor | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Objective(Protocol):
    """Batch in, loss out."""

    def __call__(self, model: Model, batch: Batch) -> Loss: ...
