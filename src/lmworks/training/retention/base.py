"""The seam: a way to tune a model without it forgetting, and a line in this table.

A method may do one of three things, or several: give steps to general text (`share`, and what is
learnt in them), pull at the weights in every step (`penalty`), or settle the weights at the end.
`strength` says how much; a budget that is overrun raises it while training goes on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.tables import look_up
from lmworks.training.batches import Batch
from lmworks.training.objectives.base import Loss, Objective
from lmworks.training.objectives.causal import causal

if TYPE_CHECKING:
    import torch

    from lmworks.models.model import Model
    from lmworks.training.retention.config import RetentionConfig

RETENTIONS: dict[str, str] = {
    "none": "lmworks.training.retention.base:Retention",
    "replay": "lmworks.training.retention.replay:Replay",
    "kl": "lmworks.training.retention.kl:KLToBase",
    "ewc": "lmworks.training.retention.ewc:EWC",
    "l2": "lmworks.training.retention.l2:L2ToInit",
    "interpolate": "lmworks.training.retention.interpolate:Interpolate",
}
GENERAL = "general text"  # the source of batches that hold on to something
_MOST_SHARE = 0.9


class Retention:
    """Nothing is held on to; the methods override what they do.

    Args:
        model: as it is before tuning.
        general: batches of general text, by number.
        share: of the steps, for methods that rehearse.
    """

    rehearses = False  # whether steps are given to general text

    def __init__(
        self,
        model: Model,
        general: Callable[[int], Batch],
        config: RetentionConfig,
        share: float,
    ) -> None:
        self.strength = share if self.rehearses else config.coefficient

    def learn(self, model: Model, batch: Batch) -> Loss:
        """What is learnt in a step on general text."""
        return causal(model, batch)

    def penalty(self, model: Model) -> torch.Tensor | None:
        """(), with its graph: added to the loss of every other step."""
        return None

    def raised(self) -> float:
        """The strength to go on with once the budget is overrun."""
        if self.rehearses:
            return self.strength + (_MOST_SHARE - self.strength) / 2
        return 2 * self.strength

    def settle(self, model: Model, measure: Callable[[], float], limit: float | None) -> str | None:
        """Bring the weights within `limit` at the end; what was done, None if nothing.

        Args:
            measure: the loss on general text of `model` as it is.
        """
        return None


class FromStart(Retention):
    """A method that knows where the weights began."""

    def __init__(
        self,
        model: Model,
        general: Callable[[int], Batch],
        config: RetentionConfig,
        share: float,
    ) -> None:
        super().__init__(model, general, config, share)
        self._start = copied(model)


class Several(Retention):
    """Methods together: what rehearses does so, penalties add up, what settles does so at the end.

    Args:
        methods: of which at most one rehearses; none holds on to nothing.
    """

    def __init__(self, methods: Sequence[Retention]) -> None:
        self._methods = list(methods)
        self._rehearsing = next((m for m in methods if m.rehearses), None)
        self.rehearses = self._rehearsing is not None  # type: ignore[misc]
        self.settles = any(type(m).settle is not Retention.settle for m in methods)

    @property
    def strength(self) -> float:  # type: ignore[override]
        """That of the method that rehearses, else of the first."""
        method = self._rehearsing or next(iter(self._methods), None)
        return 0.0 if method is None else method.strength

    def learn(self, model: Model, batch: Batch) -> Loss:
        """See `Retention`."""
        if self._rehearsing is None:
            return super().learn(model, batch)
        return self._rehearsing.learn(model, batch)

    def penalty(self, model: Model) -> torch.Tensor | None:
        """See `Retention`."""
        found = [p for m in self._methods if (p := m.penalty(model)) is not None]
        return sum(found[1:], found[0]) if found else None

    def settle(self, model: Model, measure: Callable[[], float], limit: float | None) -> str | None:
        """See `Retention`; the last method that does something says what."""
        told = [done for m in self._methods if (done := m.settle(model, measure, limit))]
        return told[-1] if told else None


def build_retention(
    name: str,
    model: Model,
    general: Callable[[int], Batch],
    config: RetentionConfig,
    share: float,
) -> Retention:
    """The method called `name`. Raises: UserError for an unknown name."""
    method: type[Retention] = look_up(RETENTIONS, name, seam="retention")
    return method(model, general, config, share)


class HeldObjective:
    """The objective of the task, with what the retention method adds.

    Args:
        objective: of all batches that are not general text.
    """

    def __init__(self, objective: Objective, retention: Retention) -> None:
        self._objective, self._retention = objective, retention

    def __call__(self, model: Model, batch: Batch) -> Loss:
        if getattr(batch, "source", "") == GENERAL:
            return self._retention.learn(model, batch)
        loss = self._objective(model, batch)
        penalty = self._retention.penalty(model) if model.training else None
        if penalty is None:
            return loss
        auxiliary = penalty if loss.auxiliary is None else loss.auxiliary + penalty
        return dataclasses.replace(
            loss, auxiliary=auxiliary, metrics={**loss.metrics, "penalty": penalty.item()}
        )


class Mixed:
    """Batches of the task and, for a share of the steps, of general text.

    A pure function of the step and of `changes`, which a checkpoint keeps: the share may change
    while training goes on.
    """

    def __init__(
        self, task: Callable[[int], Batch], general: Callable[[int], Batch], share: float
    ) -> None:
        self._task, self._general = task, general
        self.changes: list[tuple[int, float]] = [(0, share)]  # from this step on, this share

    def change(self, step: int, share: float) -> None:
        """Another share from `step` on."""
        self.changes.append((step, share))

    def __call__(self, step: int) -> Batch:
        """Batch number `step`; general text has its name as the source."""
        before = self.rehearsed(step)
        if self.rehearsed(step + 1) == before:
            return self._task(step - before)
        return dataclasses.replace(self._general(before), source=GENERAL)

    def rehearsed(self, step: int) -> int:
        """How many of the steps before `step` are on general text."""
        ends = [*(start for start, _ in self.changes[1:]), step]
        total = 0.0
        for (start, share), end in zip(self.changes, ends):
            total += share * max(0, min(end, step) - start)
        return math.floor(total + 1e-9)


def trained_parameters(model: torch.nn.Module) -> dict[str, Any]:
    """Parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def copied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the trained parameters."""
    return {name: p.detach().clone() for name, p in trained_parameters(model).items()}
