"""Stop when held-out loss no longer falls, and hand back the weights of its lowest point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmworks.core.files import atomic_save
from lmworks.training.callbacks.base import Callback

if TYPE_CHECKING:
    from lmworks.training.trainer import Trainer

_BEST = "best.pt"


class EarlyStop(Callback):
    """Args:
    patience: looks at held-out rows without a new lowest loss before the run ends.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def after_look(self, trainer: Trainer, step: int) -> None:
        """Keep the weights if they are the best so far; stop if they long have not been."""
        losses = trainer.history.heldout_loss
        best = losses.index(min(losses))
        if best == len(losses) - 1:
            state = trainer.strategy.model_state(trainer.model)
            if trainer.strategy.is_main:
                atomic_save(trainer.work / _BEST, lambda path: torch.save(state, path))
        elif len(losses) - 1 - best >= self._patience:
            trainer.stop(
                f"held-out loss has not fallen for {self._patience} looks; its lowest was "
                f"{losses[best]:.4f}"
            )

    def end(self, trainer: Trainer) -> None:
        """Go back to the best weights, unless they are the last."""
        history = trainer.history
        if not history.heldout_loss or min(history.heldout_loss) == history.heldout_loss[-1]:
            return
        step = history.heldout_step[history.heldout_loss.index(min(history.heldout_loss))]
        state = torch.load(trainer.work / _BEST, weights_only=True)
        trainer.strategy.load_model_state(trainer.model, state)
        trainer.note("best", f"the weights are those before step {step}, the best on held-out rows")
