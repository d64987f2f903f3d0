"""What every stage that trains does in the same way: its steps, its trainer, its figures.

    num_steps = steps_of(config, data.order.batches_per_epoch)
    fitted = fit_stage(model, objective, data, config, work=run.work, num_steps=num_steps, ...)
    metrics = fitted.metrics | {what the stage counts}
    fitted.write(run.folder)

A stage keeps to itself what it reads, what it learns, and what it says of the result. Whatever is
handed to `fit_stage` has to be the same in every process that takes part, and the lines after it
are the main process's alone.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lmworks.core.files import write_json

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from lmworks.training.batches import Rows
    from lmworks.training.callbacks.base import Callback
    from lmworks.training.history import History
    from lmworks.training.objectives.base import Objective
    from lmworks.training.trainer_config import LoopConfig


class TrainingConfig(Protocol):
    """What is read of a stage's settings."""

    @property
    def loop(self) -> LoopConfig: ...
    @property
    def seed(self) -> int: ...
    @property
    def checkpoint_every_s(self) -> float: ...


class EpochsConfig(Protocol):
    """How long a stage trains."""

    @property
    def epochs(self) -> float: ...
    @property
    def num_steps(self) -> int: ...


class RowData(Protocol):
    """Rows in an order, such as `preferences.Pairs`."""

    @property
    def order(self) -> Any: ...
    def __len__(self) -> int: ...
    def collate(self, rows: np.ndarray) -> Any: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """A training that has ended.

    Attributes:
        metrics: what a manifest keeps of it, see `summary`.
    """

    history: History
    metrics: dict[str, Any]

    def write(self, folder: Path, **beside: Any) -> None:
        """Write history.json, with what else the stage has to tell of the steps."""
        write_json(folder / "history.json", dataclasses.asdict(self.history) | beside)


def steps_of(config: EpochsConfig, batches_per_epoch: float, *, elsewhere: float = 0.0) -> int:
    """Steps that are asked for, or that the epochs take.

    Args:
        elsewhere: share of the steps that reads other text than what epochs are counted of.
    """
    steps = math.ceil(config.epochs * batches_per_epoch / (1 - elsewhere))
    return config.num_steps or max(1, steps)


def fixed_batches(heldout: RowData) -> list[Any]:
    """All held-out rows, in batches that stay the same."""
    return [heldout.collate(rows) for rows in heldout.order.epoch(0)] if len(heldout) else []


def fit_stage(
    model: nn.Module,
    objective: Objective,
    batches: Callable[[int], Rows],
    config: TrainingConfig,
    *,
    work: Path,
    label: str,
    num_steps: int,
    heldout: Sequence[Rows] = (),
    loop: LoopConfig | None = None,
    callbacks: Sequence[Callback] = (),
    show: Callable[[Any], str] | None = None,
    counted: nn.Module | None = None,
) -> Fitted:
    """Train `model` in place, alone or with the other processes of a plan.

    Args:
        work: folder of checkpoints, gone on from if there are some.
        loop: in the place of the config's own.
        counted: the model that the figures tell of, if `model` wraps it.
    Raises: as `Trainer.fit`; Leave in a process that is not the main one, inside of a stage.
    """
    import torch

    from lmworks.training.callbacks.keep_zeros import KeepZeros
    from lmworks.training.quantization_aware import rounded_weights
    from lmworks.training.trainer import Trainer

    started = time.monotonic()
    settings = loop or config.loop
    trained = model if counted is None else counted
    if settings.keep_zeros:
        callbacks = [*callbacks, KeepZeros(trained)]
    with rounded_weights(trained, settings.qat):
        history = Trainer(
            model,
            objective,
            batches,
            settings,
            num_steps=num_steps,
            heldout=heldout,
            work=work,
            seed=config.seed,
            checkpoint_every_s=config.checkpoint_every_s,
            callbacks=callbacks,
            show=show,
        ).fit(label)
    metrics = summary(
        history,
        trained,
        num_steps=num_steps,
        seconds=time.monotonic() - started,
        threads=torch.get_num_threads(),
    )
    return Fitted(history=history, metrics=metrics)


def figures_on(model: Any, objective: Objective, batches: Sequence[Rows]) -> dict[str, float]:
    """The objective's loss and metrics on held-out rows, of this process alone; {} for none."""
    from lmworks.training.strategy import Compute, OneProcess

    if not batches:
        return {}
    model.eval()
    found = OneProcess().evaluate(model, objective, batches, Compute())
    return {"loss": found.loss} | found.metrics


def summary(
    history: History, model: Any, *, num_steps: int, seconds: float, threads: int
) -> dict[str, Any]:
    """The figures of a training that its manifest keeps. Losses in nats per target token; see
    `speed` for where the time went."""
    from lmworks.training.speed import speed

    recent = history.loss[-max(1, len(history.loss) // 20) :]
    return {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_steps": num_steps,
        "num_targets": history.num_targets,
        "train_loss": sum(recent) / len(recent),
        "heldout_loss": history.heldout_loss[-1] if history.heldout_loss else None,
        "targets_per_s": round(history.num_targets / max(seconds, 1e-9), 1),
        "threads": threads,
        **speed(history, model),
    }
