"""Distillation: a student learns what a teacher holds likely, not only what stands in the text.

The teacher is there, or its most likely tokens were stored; then all its other tokens are one more
outcome, which keeps the distributions whole. States of layers can be learnt as well, through a map
where they are not of one width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.training.batches import IGNORED, Batch, Rows
from lmworks.training.objectives.base import Loss
from lmworks.training.objectives.in_parts import in_slices
from lmworks.training.objectives.sequence_logprobs import label_logprobs

if TYPE_CHECKING:
    from lmworks.models.model import Model

_SMALLEST = 1e-9  # of a probability, so that its logarithm is a number


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaughtBatch(Rows):
    """Tokens, and what the teacher holds most likely at each; targets are tokens.

    Attributes:
        top_ids: (B, T, K); `top_logprobs` (B, T, K) nats at the objective's temperature.
    """

    batch: Batch
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor

    @property
    def num_targets(self) -> int:
        """Tokens that count in the loss."""
        return self.batch.num_targets


class Student(nn.Module):
    """A model, and a map from its states to the teacher's width for each layer that is compared.

    Args:
        layers: pairs (layer of the student, layer of the teacher), counted from 0.
    """

    def __init__(self, model: Model, teacher: Model, layers: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.model, self.compared = model, [*layers]
        widths = model.config.hidden_size, teacher.config.hidden_size
        self.maps = nn.ModuleList(
            nn.Identity() if widths[0] == widths[1] else nn.Linear(*widths, bias=False)
            for _ in layers
        )

    @property
    def layers(self) -> nn.ModuleList:
        """The student's own, where a trainer looks for them."""
        return self.model.layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """Make the student's distribution over the next token the teacher's.

    A divergence at temperature T is multiplied by T squared, so that its gradient keeps its size.

    Source: Hinton et al. 2015, arXiv 1503.02531, section 2; reverse: Gu et al. 2023 (MiniLLM),
        arXiv 2306.08543, eq. 1; js, half of each to their mean: Agarwal et al. 2023, arXiv
        2306.13649, eq. 1 with beta = 1/2; states through a map: Romero et al. 2014 (FitNets),
        arXiv 1412.6550, eq. 3. Differs: states are normed before they are compared.
    """

    divergence: Literal["forward_kl", "reverse_kl", "js"] = option(
        "forward_kl", help="towards all that the teacher might say, its likeliest, or between"
    )
    temperature: float = option(1.0, help="flattens both distributions, above 0")
    label_weight: float = option(0.5, help="share of the plain loss on the text, 0 to 1")
    feature_weight: float = option(0.0, help="weight of the distance between layers' states")
    teacher: Any = option(None, help="set by the stage", flag=False)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"distillation: temperature = {self.temperature}: above 0")
        if not 0 <= self.label_weight <= 1:
            raise UserError(f"distillation: label_weight = {self.label_weight}: from 0 to 1")

    def __call__(self, model: Any, batch: Batch | TaughtBatch) -> Loss:
        """Mean over tokens. Metrics: nll, the plain loss in nats; divergence, in nats."""
        student = model.model if isinstance(model, Student) else model
        plain = batch.batch if isinstance(batch, TaughtBatch) else batch
        compared = model.compared if self.feature_weight and isinstance(model, Student) else []
        hidden, states = _states(student, plain, [mine for mine, _ in compared])
        theirs: dict[int, torch.Tensor] = {}
        seen = hidden
        if compared or (self.label_weight < 1 and plain is batch):
            self.teacher.to(hidden.device)
            with torch.no_grad():
                seen, theirs = _states(self.teacher, plain, [their for _, their in compared])
        nll, divergence = self._losses(student, batch, plain, hidden, seen)
        # What the student wrote itself is no label.
        weight = self.label_weight if plain.source != "student" else 0.0
        value = weight * nll
        metrics = {"nll": nll.item()}
        if divergence is not None:
            value = value + (1 - weight) * self.temperature**2 * divergence
            metrics["divergence"] = divergence.item()
        counted = plain.labels != IGNORED
        for (mine, their), change in zip(compared, model.maps if compared else ()):
            far = _distance(change(states[mine][counted]), theirs[their][counted])
            value = value + self.feature_weight * far / len(compared)
            metrics["features"] = metrics.get("features", 0.0) + far.item() / len(compared)
        return Loss(
            value=value,
            num_targets=plain.num_targets,
            auxiliary=student.auxiliary_loss(),
            metrics=metrics,
        )

    def _losses(
        self, student: Any, batch: Any, plain: Batch, hidden: torch.Tensor, seen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The plain loss and the divergence, means over tokens."""
        counted = plain.labels != IGNORED
        tokens = (hidden[counted], plain.labels[counted])
        if self.label_weight == 1:  # nobody asks the teacher
            return -label_logprobs(student, *tokens).mean(), None
        given: tuple[torch.Tensor, ...] = (seen[counted],)
        function = self._live(student)
        if plain is not batch:
            function = self._stored(student)
            given = (batch.top_ids[counted], batch.top_logprobs[counted])
        size = 2 * student.config.vocab_size  # of both
        nll, divergence = in_slices(function, *tokens, *given, vocab_size=size).mean(dim=0)
        return nll, divergence

    def _live(self, student: Any) -> Callable[..., torch.Tensor]:
        """Tokens -> (M, 2): plain loss and divergence, the teacher's states being given."""

        def losses(hidden: torch.Tensor, labels: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
            logits = student.logits(hidden).float()
            with torch.no_grad():
                theirs = self.teacher.logits(seen).float() / self.temperature
            shared = min(logits.shape[-1], theirs.shape[-1])  # vocabularies may be padded
            theirs, ours = theirs[:, :shared], logits[:, :shared] / self.temperature
            ours = ours.log_softmax(-1)
            apart = diverge(self.divergence, theirs.log_softmax(-1), ours)
            return torch.stack([F.cross_entropy(logits, labels, reduction="none"), apart], dim=1)

        return losses

    def _stored(self, student: Any) -> Callable[..., torch.Tensor]:
        """Tokens -> (M, 2), the teacher's likeliest tokens being given."""

        def losses(
            hidden: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, logprobs: torch.Tensor
        ) -> torch.Tensor:
            logits = student.logits(hidden).float()
            ours = (logits / self.temperature).log_softmax(-1).gather(-1, ids)
            apart = diverge(self.divergence, with_rest(logprobs), with_rest(ours))
            return torch.stack([F.cross_entropy(logits, labels, reduction="none"), apart], dim=1)

        return losses


def diverge(kind: str, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """(..., V) log-probabilities of both -> (...) nats, not below zero but for rounding."""
    if kind == "forward_kl":
        return _kl(teacher, student)
    if kind == "reverse_kl":
        return _kl(student, teacher)
    middle = torch.logaddexp(teacher, student) - torch.log(torch.tensor(2.0)).item()
    return (_kl(teacher, middle) + _kl(student, middle)) / 2


def _kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first.exp() * (first - second)).sum(dim=-1)


def with_rest(logprobs: torch.Tensor) -> torch.Tensor:
    """(..., K) of some outcomes -> (..., K + 1): all others are the last."""
    rest = (1 - logprobs.exp().sum(dim=-1, keepdim=True)).clamp(min=_SMALLEST)
    return torch.cat([logprobs, rest.log()], dim=-1)


def _states(
    model: Any, batch: Batch, layers: Sequence[int]
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """(B, T, H) at the end, and behind each of the layers that are asked for."""
    if not layers:
        return model.hidden_states(batch.input_ids, **batch.inputs), {}
    kept: dict[int, torch.Tensor] = {}

    def record(operation: str, value: torch.Tensor) -> None:
        # The last sum that a layer tells of is what leaves it.
        if operation.startswith("layers.") and operation.endswith("residual"):
            number = int(operation.split(".")[1])
            if number in layers:
                kept[number] = value

    hidden = model.hidden_states(batch.input_ids, record=record, **batch.inputs)
    return hidden, kept


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Mean square between normed states: their scale is no knowledge."""
    width = theirs.shape[-1:]
    return F.mse_loss(F.layer_norm(ours.float(), width), F.layer_norm(theirs.float(), width))
