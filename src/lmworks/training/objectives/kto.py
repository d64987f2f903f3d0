"""Kahneman-Tversky optimisation: answers that are liked or not, without pairs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.training.objectives.base import Loss
from lmworks.training.objectives.in_parts import are_rows_shared, in_parts
from lmworks.training.objectives.preference_parts import check_positive
from lmworks.training.objectives.sequence_logprobs import sequence_logprobs

if TYPE_CHECKING:
    from lmworks.training.preferences.batches import JudgedBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class KTO:
    """Move liked answers above a point of reference, and the others below it.

    That point is how far the model has moved from the reference on answers to other prompts: the
    mean log-ratio of the batch's mismatched rows, not below zero and without a gradient. It needs
    the batch whole; `rows_at_once` bounds the memory all the same.

    Source: Ethayarajh et al. 2024, arXiv 2402.01306, eqs. 7 and 8; z_0 estimated as in section 4.1.
    """

    whole_batch: ClassVar[bool] = True

    beta: float = option(0.1, help="how strongly the reference holds back, above 0")
    desirable_weight: float = option(1.0, help="weight of liked answers")
    undesirable_weight: float = option(1.0, help="weight of the others")
    rows_at_once: int = option(0, help="rows that go through the model at a time; 0: all")

    def __post_init__(self) -> None:
        check_positive("kto", "beta", self.beta)
        check_positive("kto", "desirable_weight", self.desirable_weight)
        check_positive("kto", "undesirable_weight", self.undesirable_weight)

    def __call__(self, model: Any, batch: JudgedBatch) -> Loss:
        """Mean over answers; needs `batch.reference`."""
        if batch.reference.keys() < {"answers", "mismatched"}:
            raise ValueError("KTO needs a reference: see training.preferences.reference")

        if (self.rows_at_once or are_rows_shared()) and model.auxiliary_loss() is not None:
            raise UserError(
                "kto: the routers of a model with experts need their batch whole: "
                "--set loop.micro_batch_size=0, in one process"
            )

        def score(part: Any) -> torch.Tensor:
            return sequence_logprobs(model, part)

        with torch.no_grad():
            elsewhere = in_parts(score, batch.mismatched, self.rows_at_once)
            moved = (elsewhere - batch.reference["mismatched"]).mean().clamp(min=0)
        ratios = in_parts(score, batch.answers, self.rows_at_once) - batch.reference["answers"]
        liked = batch.liked
        gain = torch.where(liked, ratios - moved, moved - ratios)
        weight = torch.where(liked, self.desirable_weight, self.undesirable_weight)
        return Loss(
            value=(weight * (1 - torch.sigmoid(self.beta * gain))).mean(),
            num_targets=batch.num_targets,
            auxiliary=model.auxiliary_loss(),
            metrics=self._metrics(ratios.detach(), liked, moved),
        )

    def _metrics(
        self, ratios: torch.Tensor, liked: torch.Tensor, moved: torch.Tensor
    ) -> dict[str, float]:
        right = torch.where(liked, ratios - moved, moved - ratios).sign()  # ties are half right
        metrics = {"kl": moved.item(), "accuracy": ((right + 1) / 2).mean().item()}
        if bool(liked.any()) and not bool(liked.all()):
            margin = ratios[liked].mean() - ratios[~liked].mean()
            metrics["margin"] = self.beta * margin.item()
        return metrics
