"""The seam: an objective is a function of (model, batch), and a line in this table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.core.tables import look_up

if TYPE_CHECKING:
    import torch

OBJECTIVES = {
    "causal": "lmworks.training.objectives.causal:causal",
    "distillation": "lmworks.training.objectives.distillation:Distillation",
    "byte_distillation": "lmworks.training.objectives.byte_distillation:ByteDistillation",
    "in_batch": "lmworks.training.objectives.contrastive:InBatch",
    "triplet": "lmworks.training.objectives.contrastive:Triplet",
    "reward": "lmworks.training.objectives.reward:BradleyTerry",
    "dpo": "lmworks.training.objectives.dpo:DPO",
    "ipo": "lmworks.training.objectives.ipo:IPO",
    "simpo": "lmworks.training.objectives.simpo:SimPO",
    "orpo": "lmworks.training.objectives.orpo:ORPO",
    "kto": "lmworks.training.objectives.kto:KTO",
    "masked": "lmworks.training.objectives.masked:MaskedLM",
    "prefix": "lmworks.training.objectives.prefix:PrefixLM",
    "permutation": "lmworks.training.objectives.permutation:PermutationLM",
    "replaced_token": "lmworks.training.objectives.replaced_token:ReplacedToken",
    "span_corruption": "lmworks.training.objectives.span_corruption:SpanCorruption",
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
    """Batch in, loss out. One that needs all rows of a step together has `whole_batch = True`."""

    def __call__(self, model: Any, batch: Any) -> Loss: ...


def build_objective(name: str, settings: Mapping[str, Any] | None = None) -> Objective:
    """The objective of that name: a function, or a config class that is called like one.

    Raises: UserError for an unknown name or setting, the nearest known one named.
    """
    target = look_up(OBJECTIVES, name, seam="objective")
    if isinstance(target, type):
        objective: Objective = from_mapping(  # type: ignore[assignment]
            target, settings or {}, where=f"objective {name}"
        )
        return objective
    if settings:
        raise UserError(f"objective {name} has no settings, so {min(settings)!r} says nothing")
    function: Objective = target
    return function
