"""The guard of a running training: what it does about a spike; see `spikes` for what one is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lmworks.core import progress
from lmworks.core.errors import UserError
from lmworks.training.checkpoint import load_checkpoint, save_checkpoint
from lmworks.training.diagnose import bad_gradient, first_not_finite, worst_row
from lmworks.training.spikes import batch_number, is_new_level, is_spike

if TYPE_CHECKING:
    from lmworks.training.batches import Rows
    from lmworks.training.strategy import Figures
    from lmworks.training.trainer import Trainer

_SHOWN = 200  # characters of a guilty row


class Guard:
    """Leaves out batches that would spoil the weights, and goes back where they already have.

    A second return to one snapshot also halves the learning rate from there on: it was not the
    batches. What it did stands in the history, as `events` and `skipped`.

    Args:
        show: a batch of one row as text, or None.
    """

    def __init__(self, trainer: Trainer, show: Callable[[Rows], str] | None) -> None:
        self._trainer, self._show = trainer, show
        self._config = trainer.config.spikes
        self.rate_factor = 1.0
        self._went_back_to = -1
        self._recent: dict[str, list[float]] = {}  # losses of the last steps, by source
        self._left_out: list[float] = []  # losses of the batches left out since the last step

    def snapshot(self, step: int) -> None:
        """Keep the state before `step`, every so many steps."""
        every, trainer = self._config.snapshot_every, self._trainer
        if every and step % every == 0 and step != self._went_back_to:
            state = trainer.state()
            if trainer.strategy.is_main:
                save_checkpoint(trainer.work / "snapshots", step, state)

    def judge(self, step: int, batch: Rows, figures: Figures, grad_norm: float) -> int | None:
        """None to take the step, or the number of the step to go on with.

        Raises: UserError for numbers that are not finite before there is anything to go back to,
            and after too many spikes.
        """
        trainer, history = self._trainer, self._trainer.history
        finite = math.isfinite(figures.loss) and math.isfinite(grad_norm)
        recent = self._recent.setdefault(getattr(batch, "source", ""), [])
        level = is_new_level(figures.loss, self._left_out)
        if level:
            recent.clear()
        if finite and (level or not is_spike(figures.loss, recent, self._config)):
            recent.append(figures.loss)
            del recent[: -self._config.window]
            self._left_out.clear()
            return None
        number = batch_number(step, history.skipped)
        if not finite and len(history.loss) < 2:
            raise failure(trainer, step, batch, figures, grad_norm)
        spikes = sum(event["kind"] in ("spike", "back") for event in history.events)
        if spikes >= self._config.limit:
            raise UserError(
                f"{spikes} loss spikes until step {step}, the limit (--set loop.spikes.limit=...): "
                "lower the learning rate (--set loop.optimizer.learning_rate=...), or look at the "
                "batches in history.json"
            )
        what = f"loss {figures.loss:.4g} at step {step}" + (
            f", {statistics.median(recent):.4g} before"
            if finite
            else f", gradient norm {grad_norm:.4g}"
        )
        guilty = self._guilty(batch)
        if self._sound(step):
            self._note(step, "spike", f"{what}: batch {number} is left out; {guilty}")
            history.skipped.append(number)
            self._left_out.append(figures.loss)
            return step
        return self._back(step, what, number, guilty)

    def _sound(self, step: int) -> bool:
        """Whether the batch before still has an ordinary loss: then the weights are sound."""
        trainer = self._trainer
        before = trainer.batches(batch_number(step - 1, trainer.history.skipped))
        figures = trainer.strategy.evaluate(
            trainer.model, trainer.objective, [before], trainer.compute
        )
        recent = self._recent.get(getattr(before, "source", ""), [])
        return math.isfinite(figures.loss) and not is_spike(figures.loss, recent, self._config)

    def _back(self, step: int, what: str, number: int, guilty: str) -> int:
        trainer, history = self._trainer, self._trainer.history
        found = load_checkpoint(trainer.work / "snapshots", up_to=step)
        if found is None:
            raise UserError(
                f"{what}: the weights are damaged and there is no snapshot to go back to: "
                "--set loop.spikes.snapshot_every=200 keeps some; a lower learning rate may do"
            )
        since, state = found
        norms = history.grad_norm[since:]
        culprit = since + norms.index(max(norms)) if norms else step
        batches = [batch_number(at, history.skipped) for at in range(since, step + 1)]
        message = (
            f"{what}: the weights are damaged; back to step {since}, batches {batches[0]} to "
            f"{number} are left out, the largest gradient before was at step {culprit}; {guilty}"
        )
        if since == self._went_back_to:
            self.rate_factor /= 2
            message += f"; learning rate x {self.rate_factor:g}"
        factor = self.rate_factor
        trainer.load_state(state)
        self.rate_factor, self._went_back_to = factor, since
        restored = trainer.history
        restored.events, restored.skipped = history.events, sorted({*history.skipped, *batches})
        self._note(step, "back", message)
        return since

    def _guilty(self, batch: Rows) -> str:
        """The worst row of the batch, in words."""
        trainer = self._trainer
        parts = (trainer.strategy, trainer.model, trainer.objective)
        row, loss = worst_row(*parts, batch, trainer.compute)
        words = f"its worst row is {row} (loss {loss:.4g})"
        if self._show is not None:
            text = " ".join(self._show(batch.rows(row, row + 1)).split())
            words += f": {text[:_SHOWN]!r}"
        return words

    def _note(self, step: int, kind: str, message: str) -> None:
        self._trainer.note(kind, message, step=step)
        progress.say(f"  {message}")

    def state_dict(self) -> dict[str, Any]:
        return {
            "rate_factor": self.rate_factor,
            "went_back_to": self._went_back_to,
            "recent": self._recent,
            "left_out": self._left_out,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rate_factor, self._went_back_to = state["rate_factor"], state["went_back_to"]
        self._recent, self._left_out = state["recent"], state["left_out"]


def failure(
    trainer: Trainer, step: int, batch: Rows, figures: Figures, grad_norm: float
) -> UserError:
    """What to tell of a step whose loss or gradient is not finite: row, place, what to do."""
    what = f"the loss is {figures.loss} at step {step}"
    parts = (trainer.strategy, trainer.model, trainer.objective)
    if math.isfinite(figures.loss):
        what = f"the gradient's norm is {grad_norm} at step {step}"
        where = bad_gradient(trainer.model)
        where = f"first at {where}" if where else "every part of it is finite, their sum is not"
    else:
        row, loss = worst_row(*parts, batch, trainer.compute)
        alone = batch if math.isfinite(loss) else batch.rows(row, row + 1)
        where = f"row {row} of the batch" if not math.isfinite(loss) else "no row by itself"
        if place := first_not_finite(*parts, alone, trainer.compute):
            where += f", first in {place}"
    return UserError(
        f"{what} ({where}): lower the learning rate "
        "(--set loop.optimizer.learning_rate=...), or look at the data of this step"
    )
