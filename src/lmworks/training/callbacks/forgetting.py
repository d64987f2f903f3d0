"""Watch what tuning costs elsewhere, and keep it within a budget.

The loss on fixed held-out general text is taken before the first step and every so many after. How
much it has risen is the forgetting, as a share of the base's loss. With a budget the weights are
kept whenever they are within it; beyond it the retention method holds on more strongly, or the run
stops. What is handed back at the end is within the budget: the end itself, what the method settles
on, or weights on the line from the last that were kept (at worst the base's) to those of the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lmworks.core.files import atomic_save
from lmworks.training.callbacks.base import Callback
from lmworks.training.objectives.causal import causal

if TYPE_CHECKING:
    from lmworks.training.batches import Batch
    from lmworks.training.retention.base import Mixed, Retention
    from lmworks.training.trainer import Trainer

_KEPT = "within-budget.pt"
_HALVINGS = 6


class Forgetting(Callback):
    """Args:
        general: fixed batches of held-out general text.
        every: steps between looks; 0 looks before and after alone.
        budget: the most the loss may rise, as a share of the base's; None only watches.
        retention: what is raised beyond the budget.
        mixed: the source of batches, where the method has a share of the steps.
        stops: beyond the budget the run ends, instead of holding on more strongly.
    Attributes:
        base: nats per token of general text before tuning.
        looks: (step, nats per token) of each look, the last after the end.
    """

    def __init__(
        self,
        general: Sequence[Batch],
        *,
        every: int,
        budget: float | None,
        retention: Retention,
        mixed: Mixed | None = None,
        stops: bool = False,
    ) -> None:
        self._general, self._every, self._budget = general, every, budget
        self._retention, self._mixed, self._stops = retention, mixed, stops
        self.base: float | None = None
        self.looks: list[tuple[int, float]] = []
        self._kept = -1  # the step before which the weights were kept

    @property
    def limit(self) -> float | None:
        """The most nats per token that the budget allows."""
        if self._budget is None or self.base is None:
            return None
        return self.base * (1 + self._budget)

    @property
    def forgotten(self) -> float:
        """The last look's rise, as a share of the base's loss."""
        return self.looks[-1][1] / self.base - 1 if self.looks and self.base else 0.0

    def start(self, trainer: Trainer, step: int) -> None:
        """Take the base's loss, before anything was learnt."""
        if self.base is None:
            self.base = self._measure(trainer)
            self.looks.append((step, self.base))
            self._keep(trainer, step)

    def after_step(self, trainer: Trainer, step: int) -> None:
        """Look, and act beyond the budget."""
        if not self._every or (step + 1) % self._every:
            return
        loss = self._measure(trainer)
        self.looks.append((step + 1, loss))
        if self.limit is None:
            return
        if loss <= self.limit:
            self._keep(trainer, step + 1)
        elif self._stops:
            trainer.stop(f"general text costs {self.forgotten:.2%} more than before: over budget")
        else:
            self._raise(trainer, step + 1)

    def end(self, trainer: Trainer) -> None:
        """Hand back weights within the budget."""
        final = self._measure(trainer)
        if self.limit is not None and final > self.limit:
            settled = self._retention.settle(
                trainer.model,  # type: ignore[arg-type]
                lambda: self._measure(trainer),
                self.limit,
            )
            if settled is not None:
                trainer.note("budget", settled)
            if self._measure(trainer) > self.limit:
                self._go_back(trainer, self.limit)
            final = self._measure(trainer)
        self.looks.append((len(trainer.history.loss), final))

    def _go_back(self, trainer: Trainer, limit: float) -> None:
        """From the last weights toward those that were kept, as little as the budget asks for."""
        last = trainer.strategy.model_state(trainer.model)
        last = {name: value.clone() for name, value in last.items()}
        kept = torch.load(trainer.work / _KEPT, weights_only=True)
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            trainer.strategy.load_model_state(trainer.model, _between(kept, last, middle))
            low, high = (middle, high) if self._measure(trainer) <= limit else (low, middle)
        trainer.strategy.load_model_state(trainer.model, _between(kept, last, low))
        trainer.note(
            "budget",
            f"the weights lie {low:.0%} of the way from those before step {self._kept}, the last "
            "within the budget, to those of the end",
        )

    def _raise(self, trainer: Trainer, step: int) -> None:
        method, before = self._retention, self._retention.strength
        method.strength = method.raised()
        if self._mixed is not None and method.rehearses:
            self._mixed.change(step, method.strength)
        trainer.note(
            "budget",
            f"general text costs {self.forgotten:.2%} more than before, over budget: "
            f"strength {before:.3g} -> {method.strength:.3g}",
        )

    def _keep(self, trainer: Trainer, step: int) -> None:
        if self._budget is None:
            return
        state = trainer.strategy.model_state(trainer.model)
        if trainer.strategy.is_main:
            atomic_save(trainer.work / _KEPT, lambda path: torch.save(state, path))
        self._kept = step

    def _measure(self, trainer: Trainer) -> float:
        was_training = trainer.model.training
        trainer.model.eval()
        figures = trainer.strategy.evaluate(trainer.model, causal, self._general, trainer.compute)
        trainer.model.train(was_training)
        return figures.loss

    def state_dict(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "looks": list(self.looks),
            "kept": self._kept,
            "strength": self._retention.strength,
            "changes": None if self._mixed is None else list(self._mixed.changes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base, self._kept = state["base"], state["kept"]
        self.looks = [(step, loss) for step, loss in state["looks"]]
        self._retention.strength = state["strength"]
        if self._mixed is not None:
            self._mixed.changes = [(step, share) for step, share in state["changes"]]


def _between(
    left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """Weights on the line from `left` to `right`; what is no number of a float type is `left`'s."""
    return {
        name: torch.lerp(value, right[name].to(value), share)
        if value.is_floating_point()
        else value
        for name, value in left.items()
    }
