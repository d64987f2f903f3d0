"""The seam: an objective is a function of (model, batch), and a line in this table."""

from __future__ import annotations

import dataclasses
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
    """`value` is a scalar in nats per target token, with its graph; `num_targets` its weight."""

    value: torch.Tensor
    num_targets: int


class Objective(Protocol):
    """Batch in, loss out."""

    def __call__(self, model: Model, batch: Batch) -> Loss: ...
