"""The loop: batch, loss, gradient, step. Everything that varies is passed in.

Bit-exact resume rests on three things: a batch is a pure function of (seed, step), the state of the
optimizer and of all else that moves is saved whole, and what is drawn at random in a step (dropout)
is drawn from (seed, step) as well. When and how often checkpoints are written never changes a
result, nor does the number of rows that go through the model at a time, but for rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmworks.core import progress
from lmworks.core.errors import Preempted, UserError
from lmworks.training.averages import WeightAverage
from lmworks.training.batches import token_shape
from lmworks.training.callbacks.base import Callback
from lmworks.training.callbacks.early_stop import EarlyStop
from lmworks.training.checkpoint import load_checkpoint, save_checkpoint
from lmworks.training.guard import Guard, failure
from lmworks.training.history import History
from lmworks.training.interrupt import interruptible
from lmworks.training.loss_scale import LossScale
from lmworks.training.memory_advice import check_memory, memory_error
from lmworks.training.schedules import build_schedule
from lmworks.training.spikes import batch_number
from lmworks.training.step_clock import StepClock
from lmworks.training.strategy import Compute, OneProcess, Strategy, strategy_for
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    from torch import nn

    from lmworks.training.batches import Rows
    from lmworks.training.objectives.base import Objective
    from lmworks.training.strategy import Figures


class Trainer:
    """Trains a model in place; parameters that ask for no gradient stay as they are.

    Args:
        model: any module that the objective can call.
        batches: number -> Rows; a pure function, so that a resume sees the same ones.
        heldout: fixed batches for the held-out loss; may be empty.
        work: folder for checkpoints; what an earlier run left there is gone on with.
        seed: of what is drawn while computing, such as dropout.
        checkpoint_every_s: seconds between checkpoints.
        callbacks: what happens beside the steps.
        strategy: the processes that share the work; this one alone by default.
        show: a batch's row as text, so that a guilty one can be shown.
        clock: told what is going on, for a breakdown of the time; a new one by default.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        batches: Callable[[int], Rows],
        config: LoopConfig,
        *,
        num_steps: int,
        heldout: Sequence[Rows] = (),
        work: Path,
        seed: int = 0,
        checkpoint_every_s: float = 30.0,
        callbacks: Sequence[Callback] = (),
        strategy: Strategy | None = None,
        show: Callable[[Rows], str] | None = None,
        clock: StepClock | None = None,
    ) -> None:
        if num_steps < 1:
            raise UserError(f"num_steps = {num_steps}: train for at least one step")
        self.config, self.num_steps, self.work = config, num_steps, work
        self.objective, self.batches, self.heldout = objective, batches, heldout
        self.history = History()
        self.strategy = strategy or strategy_for(config.parallel)
        self._home = next(model.parameters()).device
        self.device = _device(config.device, self._home)
        self.clock = clock or StepClock(self.device.type)
        model.to(self.device)
        self._whole = model
        self.model = model = self.strategy.prepare(model, config)
        _lay_out(model, config)
        self._scale = LossScale(config.precision)
        self._schedule = build_schedule(config, num_steps)
        self.optimizer = self.strategy.optimizer(model, config.optimizer)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._average = WeightAverage(self._trained, config.ema) if config.ema else None
        self._guard = Guard(self, show) if config.spikes.threshold else None
        self.callbacks = [*callbacks]
        if config.patience:
            self.callbacks.append(EarlyStop(config.patience))
        self._seed, self._every_s, self._stopped = seed, checkpoint_every_s, ""

    def fit(self, label: str = "training") -> History:
        """Run to the last step, from the newest checkpoint if there is one.

        Raises: UserError for a loss that is not finite, naming step, row and layer;
            KeyboardInterrupt after Ctrl-C and Preempted after SIGTERM, once the finished steps are
            saved.
        """
        step = self._resume()
        check_memory(self, step)
        self.clock.restart()
        saved_at = time.monotonic()
        self.model.train()
        for callback in self.callbacks:
            callback.start(self, step)
        # What a step draws must not change what the caller draws afterwards.
        with (
            progress.track(label, total=self.num_steps) as bar,
            interruptible() as interrupted,
            torch.random.fork_rng(),
        ):
            bar.advance(step)
            while step < self.num_steps and not self._stopped:
                reached = self._within_memory(step)
                bar.advance(reached - step, **self._shown())
                step = reached
                stop = self.strategy.any_process(bool(interrupted()))
                due = self.strategy.any_process(time.monotonic() - saved_at > self._every_s)
                if stop or (due and step < self.num_steps):
                    with self.clock.part("checkpoint"):
                        self._save(step)
                    saved_at = time.monotonic()
                if stop:
                    self._leave(step, interrupted())
        self._finish(step)
        self.history.spent = self.clock.seconds()
        return self.history

    def _leave(self, step: int, number: int) -> None:
        """Raises: KeyboardInterrupt, or Preempted when the system ends any of the processes."""
        if self.strategy.any_process(number == signal.SIGTERM):
            raise Preempted(
                f"ended by the system after step {step}, which is saved: the same command goes on"
            )
        raise KeyboardInterrupt

    @property
    def compute(self) -> Compute:
        """How a batch is computed now."""
        return Compute(
            micro_batch_size=self.config.micro_batch_size,
            precision=self.config.precision,
            scale=self._scale.value,
            clock=self.clock,
        )

    def stop(self, reason: str) -> None:
        """End after the running step; the reason stands in the history."""
        self._stopped = reason
        self.note("stop", reason)
        progress.say(f"  {reason}")

    def note(self, kind: str, message: str, *, step: int | None = None) -> None:
        """Add an event to the history; of the present step unless another is named."""
        at = len(self.history.loss) if step is None else step
        self.history.events.append({"step": at, "kind": kind, "message": message})

    def batch_of(self, step: int) -> Rows:
        """What `step` learns from, batches that were left out passed over."""
        return self.batches(batch_number(step, self.history.skipped))

    @property
    def alone(self) -> bool:
        """Whether no other process shares the work."""
        return isinstance(self.strategy, OneProcess)

    def _within_memory(self, step: int) -> int:
        try:
            return self.take_step(step)
        except (MemoryError, RuntimeError) as error:
            told = memory_error(self, step, error)
            if told is None:
                raise
        raise told  # outside of the handler, which holds the failed step's memory

    def take_step(self, step: int) -> int:
        """Take a step, as `fit` does for all; the number of the one to go on with."""
        if self._guard:
            with self.clock.part("checkpoint"):
                self._guard.snapshot(step)
        for callback in self.callbacks:
            callback.before_step(self, step)
        if step % self.config.eval_every == 0:
            with self.clock.part("held-out"):
                self._look(step)
            if self._stopped:
                return step
        with self.clock.part("data"):
            batch = self.batch_of(step)
        self.model.zero_grad(set_to_none=True)
        torch.manual_seed(self._seed * 1_000_003 + step)
        figures = self.strategy.gradients(self.model, self.objective, batch, self.compute)
        with self.clock.part("clip"):
            norm = self.strategy.clip(self._trained, self.config.optimizer.max_grad_norm)
        if self._scale.accepts(norm):
            elsewhere = self._judge(step, batch, figures, norm)
            if elsewhere is not None:
                return elsewhere
            with self.clock.part("optimizer"):
                self.optimizer.step(self._rate(step))
                if self._average:
                    self._average.update()
        self._record(figures, norm)
        self._count(batch)
        for callback in self.callbacks:
            callback.after_step(self, step)
        return step + 1

    def _judge(self, step: int, batch: Rows, figures: Figures, norm: float) -> int | None:
        if self._guard:
            return self._guard.judge(step, batch, figures, norm)
        if not (math.isfinite(figures.loss) and math.isfinite(norm)):
            raise failure(self, step, batch, figures, norm)
        return None

    def _rate(self, step: int) -> float:
        return self._schedule(step) * (self._guard.rate_factor if self._guard else 1.0)

    def _record(self, figures: Figures, norm: float) -> None:
        history = self.history
        history.loss.append(figures.loss)
        history.grad_norm.append(norm)
        history.num_targets += figures.num_targets
        for name, figure in figures.metrics.items():
            history.metrics.setdefault(name, []).append(figure)

    def _count(self, batch: Rows) -> None:
        """For the speed: tokens of this process, whatever an earlier one did."""
        count, length = token_shape(batch)
        self.history.tokens += count
        self.history.row_length = max(self.history.row_length, length)
        self.history.precision = self.config.precision

    def _shown(self) -> dict[str, float]:
        shown = {name: column[-1] for name, column in self.history.metrics.items()}
        return {"loss": self.history.loss[-1], **shown} if self.history.loss else shown

    def _look(self, step: int) -> None:
        """Held-out loss before `step`, of the weights that would be handed back now."""
        if not self.heldout:
            return
        self.model.eval()
        with self._average.in_place() if self._average else contextlib.nullcontext():
            figures = self.strategy.evaluate(self.model, self.objective, self.heldout, self.compute)
            self.history.heldout_step.append(step)
            self.history.heldout_loss.append(figures.loss)
            for callback in self.callbacks:
                callback.after_look(self, step)
        self.model.train()

    def _finish(self, step: int) -> None:
        if self.history.heldout_step[-1:] != [step]:
            with self.clock.part("held-out"):
                self._look(step)
        if self._average:
            self._average.settle()
        for callback in self.callbacks:
            callback.end(self)
        self.strategy.finish(self._whole, self.model)
        self._whole.eval().to(self._home)

    def state(self) -> dict[str, Any]:
        """All that moves, whole; a collective call where several processes share the work."""
        parts = {"average": self._average, "scale": self._scale, "guard": self._guard}
        return {
            "model": self.strategy.model_state(self.model),
            "optimizer": self.strategy.optimizer_state(self.optimizer),
            "history": dataclasses.asdict(self.history),
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            **{name: part.state_dict() for name, part in parts.items() if part is not None},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self.strategy.load_model_state(self.model, state["model"])
        self.strategy.load_optimizer_state(self.optimizer, state["optimizer"])
        self.history = History(**state["history"])
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(saved)
        parts = {"average": self._average, "scale": self._scale, "guard": self._guard}
        for name, part in parts.items():
            if part is not None and name in state:
                part.load_state_dict(state[name])

    def _save(self, step: int) -> None:
        state = self.state()
        if self.strategy.is_main:
            save_checkpoint(self.work, step, state)

    def _resume(self) -> int:
        found = load_checkpoint(self.work)
        if found is None:
            return 0
        step, state = found
        self.load_state(state)
        return step


def _device(wanted: str, home: torch.device) -> torch.device:
    """Raises: UserError for a device that torch does not have here."""
    if wanted == "auto":
        return torch.device("cuda") if torch.cuda.is_available() else home
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), "unknown")
        raise UserError(f"device {wanted!r} can't be used: {reason[:120]}") from error
    return device


def _lay_out(model: nn.Module, config: LoopConfig) -> None:
    """Recomputed activations and compiled layers, where the model has layers."""
    layers = getattr(model, "layers", None)
    if config.activation_checkpointing:
        if not hasattr(model, "checkpoint_layers"):
            raise UserError(
                f"activation_checkpointing: {type(model).__name__} has no layers to compute again"
            )
        model.checkpoint_layers = True  # type: ignore[assignment]
    if config.compile:
        for part in layers if layers is not None else [model]:
            part.compile()  # type: ignore[operator]
