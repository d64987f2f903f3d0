"""The seam: what a callback may do beside a training's steps.

A callback may read everything of the trainer, and change the run by `trainer.stop(reason)`. What it
keeps between steps belongs into its state, so that a resumed run goes on as an undisturbed one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmworks.training.trainer import Trainer


class Callback:
    """Does nothing; override what you need. All are called in all processes."""

    def start(self, trainer: Trainer, step: int) -> None:
        """Before the first step of this process, which is `step`."""

    def before_step(self, trainer: Trainer, step: int) -> None:
        """Before `step`'s batch is drawn."""

    def after_step(self, trainer: Trainer, step: int) -> None:
        """After `step` changed the weights (or was left out)."""

    def after_look(self, trainer: Trainer, step: int) -> None:
        """After a look at held-out rows before `step`; `trainer.history.heldout_loss` has it."""

    def end(self, trainer: Trainer) -> None:
        """After the last step, before the model is handed back."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
