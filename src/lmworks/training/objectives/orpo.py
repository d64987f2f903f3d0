"""Odds-ratio preference optimisation: tuning and preference in one loss, without a reference."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from lmworks.core.config import option
from lmworks.training.objectives.base import Loss
from lmworks.training.objectives.preference_parts import check_positive, preference_metrics
from lmworks.training.objectives.sequence_logprobs import pair_logprobs

if TYPE_CHECKING:
    from lmworks.training.preferences.batches import PreferenceBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class ORPO:
    """Learn the chosen answer, and raise its odds above the rejected one's.

    The authors' code and TRL learn the prompt of the chosen row too; `learn_prompt=false` leaves it
    out.

    Source: Hong et al. 2024, arXiv 2403.07691, eqs. 4 to 7; beta is its lambda.
    """

    beta: float = option(0.1, help="weight of the odds ratio, above 0")
    learn_prompt: bool = option(True, help="whether the prompt counts in the likelihood")

    def __post_init__(self) -> None:
        check_positive("orpo", "beta", self.beta)

    def __call__(self, model: Any, batch: PreferenceBatch) -> Loss:
        """Mean over tokens of the likelihood, and over pairs of the odds ratio."""
        policy = pair_logprobs(model, batch, whole=self.learn_prompt)
        chosen = policy.chosen / policy.chosen_length.clamp(min=1)
        rejected = policy.rejected / policy.rejected_length.clamp(min=1)
        log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
        if policy.whole is not None:
            likelihood = (policy.whole * batch.whole_share).mean()
        else:
            likelihood = (policy.chosen * batch.answer_share).mean()
        metrics = preference_metrics(self.beta * chosen, self.beta * rejected)
        return Loss(
            value=-likelihood - self.beta * F.logsigmoid(log_odds).mean(),
            num_targets=batch.num_targets,
            auxiliary=policy.auxiliary,
            metrics=metrics | {"nll": -likelihood.item()},
        )


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0, without cancellation (Maechler 2012, R's Rmpfr, note log1mexp)."""
    # Both branches are computed, and a branch that is not taken must have no infinite gradient.
    near = x > -math.log(2)
    close = torch.where(near, x, torch.full_like(x, -1.0))
    far = torch.where(near, torch.full_like(x, -1.0), x)
    return torch.where(near, torch.log(-torch.expm1(close)), torch.log1p(-torch.exp(far)))
