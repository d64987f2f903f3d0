"""Identity preference optimisation: the difference of the log-ratios is led to a fixed margin."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lmworks.core.config import option
from lmworks.training.objectives.base import Loss
from lmworks.training.objectives.preference_parts import (
    check_positive,
    log_ratios,
    preference_metrics,
)
from lmworks.training.objectives.sequence_logprobs import pair_logprobs

if TYPE_CHECKING:
    from lmworks.training.preferences.batches import PreferenceBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class IPO:
    """Square the distance of the log-ratios' difference from 1 / (2 beta).

    A preference that is always the same does not drive the ratios to infinity, as it does in DPO.
    Log-ratios are means over an answer's tokens, as the authors confirmed to TRL.

    Source: Azar et al. 2023, arXiv 2310.12036, eq. 17, whose tau is beta.
    """

    beta: float = option(0.1, help="half the inverse of the margin that is aimed at, above 0")

    def __post_init__(self) -> None:
        check_positive("ipo", "beta", self.beta)

    def __call__(self, model: Any, batch: PreferenceBatch) -> Loss:
        """Mean over pairs; needs `batch.reference`."""
        policy = pair_logprobs(model, batch)
        chosen, rejected = log_ratios(policy, batch)
        chosen = chosen / policy.chosen_length.clamp(min=1)
        rejected = rejected / policy.rejected_length.clamp(min=1)
        return Loss(
            value=((chosen - rejected - 1 / (2 * self.beta)) ** 2).mean(),
            num_targets=batch.num_targets,
            auxiliary=policy.auxiliary,
            metrics=preference_metrics(self.beta * chosen, self.beta * rejected),
        )
