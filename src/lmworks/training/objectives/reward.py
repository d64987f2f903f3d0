"""Reward models: the number of the better answer is led above that of the other.

A model with several heads gives a number in each regard (helpful, harmless, honest); a pair counts
in those that it was judged in.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.training.objectives.base import Loss

if TYPE_CHECKING:
    from lmworks.training.preferences.reward_batches import RewardBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    """Make the better answer's reward the higher one.

    The pair's margin, if it has one, is what the difference has to exceed before it counts as right
    (Touvron et al. 2023, Llama 2, arXiv 2307.09288, eq. 2). Differences leave the rewards' level
    open; `centring` draws it to zero (Eisenstein et al. 2023, arXiv 2312.09244, section 3).

    Source: Bradley & Terry 1952, "Rank analysis of incomplete block designs"; Ouyang et al. 2022,
        arXiv 2203.02155, eq. 1.
    """

    centring: float = option(0.0, help="weight of the square of a pair's summed rewards")

    def __post_init__(self) -> None:
        if self.centring < 0:
            raise UserError(f"reward: centring = {self.centring}: give a number from 0 up")

    def __call__(self, model: Any, batch: RewardBatch) -> Loss:
        """Mean over pairs and the regards that they were judged in."""
        chosen, rejected = rewards(model, batch).chunk(2)  # (B, heads) each
        judged = batch.better != 0
        difference = (batch.better * (chosen - rejected))[judged]
        value = -F.logsigmoid(difference - batch.margin[judged]).mean()
        if self.centring:
            value = value + self.centring * ((chosen + rejected)[judged] ** 2).mean()
        with torch.no_grad():
            metrics = {
                "accuracy": (difference > 0).float().mean().item(),
                "margin": difference.mean().item(),
            }
        return Loss(
            value=value,
            num_targets=batch.num_targets,
            auxiliary=model.auxiliary_loss(),
            metrics=metrics,
        )


def rewards(model: Any, batch: RewardBatch) -> torch.Tensor:
    """(2B, heads): of the chosen rows, then of the rejected ones, in one forward."""
    both = (batch.chosen, batch.rejected)
    width = max(texts.input_ids.shape[1] for texts in both)
    ids, mask = (
        torch.cat([F.pad(x, (0, width - x.shape[1])) for x in two])
        for two in ([t.input_ids for t in both], [t.attention_mask for t in both])
    )
    return reward_of(model, ids, mask)


def reward_of(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) ids and mask -> (B, heads), float32."""
    found = model(input_ids, attention_mask=attention_mask).float()
    return found[:, None] if found.dim() == 1 else found
