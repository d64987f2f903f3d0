"""Direct preference optimisation, conservative with label smoothing (cDPO), with a likelihood term.

The likelihood term keeps the chosen answers from becoming less likely themselves, which the
difference alone allows (Pang et al. 2024, arXiv 2404.19733; Llama 3, arXiv 2407.21783).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

from lmworks.core.config import option
from lmworks.training.objectives.base import Loss
from lmworks.training.objectives.preference_parts import (
    check_positive,
    check_smoothing,
    log_ratios,
    preference_metrics,
    smoothed,
)
from lmworks.training.objectives.sequence_logprobs import pair_logprobs

if TYPE_CHECKING:
    from lmworks.training.preferences.batches import PreferenceBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO:
    """Raise the chosen answer's log-ratio to the reference above the rejected one's.

    Source: Rafailov et al. 2023, arXiv 2305.18290, eq. 7; label smoothing: Mitchell 2023, "A note
        on DPO with noisy preferences" (cDPO), eq. 3.
    """

    beta: float = option(0.1, help="how strongly the reference holds back, above 0")
    label_smoothing: float = option(0.0, help="share of pairs that may be the wrong way round")
    nll_weight: float = option(0.0, help="weight of the chosen answers' own loss, per token")

    def __post_init__(self) -> None:
        check_positive("dpo", "beta", self.beta)
        check_smoothing("dpo", self.label_smoothing)

    def __call__(self, model: Any, batch: PreferenceBatch) -> Loss:
        """Mean over pairs; needs `batch.reference`."""
        policy = pair_logprobs(model, batch)
        chosen, rejected = log_ratios(policy, batch)
        value = smoothed(F.logsigmoid, self.beta * (chosen - rejected), self.label_smoothing).mean()
        if self.nll_weight:
            value = value - self.nll_weight * (policy.chosen * batch.answer_share).mean()
        return Loss(
            value=value,
            num_targets=batch.num_targets,
            auxiliary=policy.auxiliary,
            metrics=preference_metrics(self.beta * chosen, self.beta * rejected),
        )
