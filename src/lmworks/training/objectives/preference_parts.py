"""What the objectives over pairs share: log-ratios, smoothing, and the figures they show."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from lmworks.training.objectives.sequence_logprobs import PairLogprobs
    from lmworks.training.preferences.batches import PreferenceBatch


def log_ratios(policy: PairLogprobs, batch: PreferenceBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,), (B,): log policy / reference of the chosen and the rejected answers, summed.

    Raises: ValueError for a batch without the reference's log-probabilities.
    """
    if batch.reference.keys() < {"chosen", "rejected"}:
        raise ValueError("this objective needs a reference: see training.preferences.reference")
    return policy.chosen - batch.reference["chosen"], policy.rejected - batch.reference["rejected"]


def smoothed(
    log_probability: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """(B,) loss of a choice whose label is wrong with probability `smoothing`."""
    right = -log_probability(logits)
    if not smoothing:
        return right
    return (1 - smoothing) * right - smoothing * log_probability(-logits)


def preference_metrics(chosen: torch.Tensor, rejected: torch.Tensor) -> dict[str, float]:
    """Share of pairs whose chosen answer has the higher reward (ties half), mean difference.

    Args:
        chosen, rejected: (B,) what the objective takes for a reward.
    """
    with torch.no_grad():
        return {
            "accuracy": (((chosen - rejected).sign() + 1) / 2).mean().item(),
            "margin": (chosen - rejected).mean().item(),
        }


def check_positive(objective: str, name: str, value: float) -> None:
    """Raises: UserError for what is not above zero."""
    if not value > 0:
        raise UserError(f"{objective}: {name} = {value}: give a number above 0")


def check_smoothing(objective: str, value: float) -> None:
    """Raises: UserError for a share that would turn the preference round."""
    if not 0 <= value < 0.5:
        raise UserError(f"{objective}: label_smoothing = {value}: a share from 0 up to below 0.5")
