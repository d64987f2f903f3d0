"""The loop: batch, loss, gradient, step. Everything that varies is passed in.

Bit-exact resume rests on three things: a batch is a pure function of (seed, step), the optimizer
state is saved whole, and nothing here draws random numbers. When and how often checkpoints are
written never changes a result.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.core.tables import look_up
from lmworks.training.checkpoint import load_checkpoint, save_checkpoint
from lmworks.training.optimizers.base import build_optimizer
from lmworks.training.schedules import SCHEDULES, rate
from lmworks.training.tokens import Batch
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.training.objectives.base import Objective


@dataclasses.dataclass(kw_only=True)
class History:
    """What happened, as columns: training loss per step, held-out loss now and then (nats).

    `metrics` are the objective's figures of each step, such as a router's loss.
    """

    loss: list[float] = dataclasses.field(default_factory=list)
    grad_norm: list[float] = dataclasses.field(default_factory=list)
    heldout_step: list[int] = dataclasses.field(default_factory=list)
    heldout_loss: list[float] = dataclasses.field(default_factory=list)
    num_targets: int = 0  # target tokens seen so far
    metrics: dict[str, list[float]] = dataclasses.field(default_factory=dict)


class Trainer:
    """Trains a model in place.

    Args:
        batches: step -> Batch; a pure function, so that a resume sees the same ones.
        heldout: fixed batches for the held-out loss; may be empty.
        work: folder for checkpoints; what an earlier run left there is gone on with.
        checkpoint_every_s: seconds between checkpoints.
        after_step: called with (step, History) after each step; for tests and callbacks.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        batches: Callable[[int], Batch],
        config: LoopConfig,
        *,
        num_steps: int,
        heldout: Sequence[Batch] = (),
        work: Path,
        checkpoint_every_s: float = 30.0,
        after_step: Callable[[int, History], None] | None = None,
    ) -> None:
        if num_steps < 1:
            raise UserError(f"num_steps = {num_steps}: train for at least one step")
        self.model, self.history = model, History()
        self._objective, self._batches, self._heldout = objective, batches, heldout
        self._config, self._num_steps = config, num_steps
        self._schedule = look_up(SCHEDULES, config.schedule, seam="schedule")
        self._optimizer = build_optimizer(model, config.optimizer)
        self._work, self._every_s, self._after_step = work, checkpoint_every_s, after_step

    def fit(self, label: str = "training") -> History:
        """Run to the last step, from the newest checkpoint if there is one.

        Raises: UserError for a loss that is not finite, naming the step; KeyboardInterrupt after
            Ctrl-C, once the finished steps are saved.
        """
        start = self._resume()
        saved_at = time.monotonic()
        self.model.train()
        with track(label, total=self._num_steps) as bar, _interruptible() as interrupted:
            bar.advance(start)
            for step in range(start, self._num_steps):
                self._step(step)
                shown = {name: column[-1] for name, column in self.history.metrics.items()}
                bar.advance(loss=self.history.loss[-1], **shown)
                if self._after_step:
                    self._after_step(step, self.history)
                due = time.monotonic() - saved_at > self._every_s
                if interrupted() or (due and step + 1 < self._num_steps):
                    self._save(step + 1)
                    saved_at = time.monotonic()
                if interrupted():
                    raise KeyboardInterrupt
        self.model.eval()
        return self.history

    def _step(self, step: int) -> None:
        if step % self._config.eval_every == 0:
            self._look(step)
        self.model.zero_grad(set_to_none=True)
        loss = self._objective(self.model, self._batches(step))
        value = loss.value.item()
        if not math.isfinite(value):
            raise UserError(
                f"the loss is {value} at step {step}: lower the learning rate "
                "(--set loop.optimizer.learning_rate=...), or look at the data of this step"
            )
        whole = loss.value if loss.auxiliary is None else loss.value + loss.auxiliary
        whole.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self._config.optimizer.max_grad_norm
        )
        warmup = min(self._config.warmup_steps, max(1, self._num_steps // 5))
        self._optimizer.step(
            rate(self._schedule, step, num_steps=self._num_steps, warmup_steps=warmup)
        )
        self.history.loss.append(value)
        self.history.grad_norm.append(norm.item())
        self.history.num_targets += loss.num_targets
        for name, figure in loss.metrics.items():
            self.history.metrics.setdefault(name, []).append(figure)
        if step + 1 == self._num_steps:
            self._look(self._num_steps)

    def _look(self, step: int) -> None:
        """Held-out loss before `step`."""
        if not self._heldout:
            return
        self.model.eval()
        with torch.no_grad():
            losses = [self._objective(self.model, batch) for batch in self._heldout]
        self.model.train()
        total = sum(loss.num_targets for loss in losses)
        mean = sum(loss.value.item() * loss.num_targets for loss in losses) / total
        self.history.heldout_step.append(step)
        self.history.heldout_loss.append(mean)

    def _save(self, step: int) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "history": dataclasses.asdict(self.history),
        }
        save_checkpoint(self._work, step, state)

    def _resume(self) -> int:
        found = load_checkpoint(self._work)
        if found is None:
            return 0
        step, state = found
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.history = History(**state["history"])
        return step


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the loop to stop after the running step; a second one stops at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        former = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: Ctrl-C is somebody else's business
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, former)
