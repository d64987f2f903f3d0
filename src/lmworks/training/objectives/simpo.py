"""Simple preference optimisation: likelihood per token is the reward, and there is no reference."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

from lmworks.core.config import option
from lmworks.training.objectives.base import Loss
from lmworks.training.objectives.preference_parts import (
    check_positive,
    check_smoothing,
    preference_metrics,
    smoothed,
)
from lmworks.training.objectives.sequence_logprobs import pair_logprobs

if TYPE_CHECKING:
    from lmworks.training.preferences.batches import PreferenceBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimPO:
    """Raise the chosen answer's mean log-probability above the rejected one's by a margin.

    `nll_weight` adds the chosen answers' own loss, which makes it CPO-SimPO (Xu et al. 2024, arXiv
    2401.08417, section 3.2).

    Source: Meng et al. 2024, arXiv 2405.14734, eq. 6; the defaults lie within its table 7.
    """

    beta: float = option(2.0, help="scale of the reward, above 0")
    gamma: float = option(1.0, help="margin of the reward that is aimed at")
    label_smoothing: float = option(0.0, help="share of pairs that may be the wrong way round")
    nll_weight: float = option(0.0, help="weight of the chosen answers' own loss, per token")

    def __post_init__(self) -> None:
        check_positive("simpo", "beta", self.beta)
        check_smoothing("simpo", self.label_smoothing)

    def __call__(self, model: Any, batch: PreferenceBatch) -> Loss:
        """Mean over pairs."""
        policy = pair_logprobs(model, batch)
        chosen = policy.chosen / policy.chosen_length.clamp(min=1)
        rejected = policy.rejected / policy.rejected_length.clamp(min=1)
        logits = self.beta * (chosen - rejected) - self.gamma
        value = smoothed(F.logsigmoid, logits, self.label_smoothing).mean()
        if self.nll_weight:
            value = value - self.nll_weight * (policy.chosen * batch.answer_share).mean()
        return Loss(
            value=value,
            num_targets=batch.num_targets,
            auxiliary=policy.auxiliary,
            metrics=preference_metrics(self.beta * chosen, self.beta * rejected),
        )
