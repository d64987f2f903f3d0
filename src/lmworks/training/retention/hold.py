"""A retention method around a task: its objective, its batches, the watch over forgetting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.training.batches import Batch
from lmworks.training.callbacks.forgetting import Forgetting
from lmworks.training.objectives.base import Objective
from lmworks.training.objectives.causal import causal
from lmworks.training.retention.base import HeldObjective, Mixed, build_retention
from lmworks.training.retention.config import RetentionConfig, parse_budget

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.distributed.plan import ParallelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held:
    """What the trainer is given in the place of the task's own."""

    objective: Objective
    batches: Callable[[int], Batch]
    forgetting: Forgetting | None
    share: float  # of the steps on general text, at the beginning

    @property
    def callbacks(self) -> list[Forgetting]:
        return [self.forgetting] if self.forgetting else []

    @property
    def looks(self) -> list[Any]:
        """(step, loss) of general text, each time it was looked at."""
        return self.forgetting.looks if self.forgetting else []

    def figures(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        watch = self.forgetting
        if watch is None or watch.base is None:
            return {}
        return {
            "general_loss_before": watch.base,
            "general_loss": watch.looks[-1][1],
            "forgotten": round(watch.forgotten, 5),
        }


def check_plan(plan: ParallelConfig, method: str) -> None:
    """Raises: UserError for a method that needs all weights under a plan that cuts them."""
    if plan.cuts and method in ("ewc", "l2", "interpolate"):
        raise UserError(
            f"--retention {method} looks at all weights in each process, and {plan} cuts the "
            "model: take replay or kl, or a plan of data alone"
        )


def hold(
    task: Callable[[int], Batch],
    model: Model,
    tokenizer: Tokenizer,
    *,
    corpus: Path | None,
    method: str,
    share: float,
    budget: str,
    config: RetentionConfig,
    context_length: int,
    batch_size: int,
    seed: int,
    work: Path,
) -> Held:
    """Hold `model` to the general text of `corpus` while it learns `task`.

    Args:
        corpus: folder with train.jsonl and heldout.jsonl; None holds on to nothing.
        budget: as `parse_budget` reads it.
        batch_size: rows of a batch of general text.
    Raises: UserError for a budget without a corpus, or settings out of range.
    """
    limit = parse_budget(budget)
    if not 0 <= share < 1:
        raise UserError(f"replay = {share}: a share of steps, from 0 up to below 1")
    if corpus is None:
        if limit is not None:
            raise UserError("a forgetting budget needs text to measure by: give it with --corpus")
        return Held(objective=causal, batches=task, forgetting=None, share=0.0)
    from lmworks.training.pretrain import cached_stream
    from lmworks.training.tokens import PackedWindows, leading_windows

    folder = work / "general"
    folder.mkdir(parents=True, exist_ok=True)
    windows = PackedWindows(
        cached_stream(corpus / "train.jsonl", tokenizer, folder),
        context_length=context_length,
        batch_size=batch_size,
        seed=seed,
    )
    retention = build_retention(method, model, windows, config, share)
    share = retention.strength if retention.rehearses else 0.0
    mixed = Mixed(task, windows, share)
    heldout = leading_windows(
        cached_stream(corpus / "heldout.jsonl", tokenizer, folder),
        context_length=context_length,
        count=config.look_windows,
    )
    if limit is not None and not heldout:
        raise UserError(f"{corpus / 'heldout.jsonl'} is too short for one window to measure by")
    watch = None
    if heldout:
        watch = Forgetting(
            heldout,
            every=config.look_every if limit is not None else 0,
            budget=limit,
            retention=retention,
            mixed=mixed,
            stops=config.over_budget == "stop",
        )
    return Held(
        objective=HeldObjective(causal, retention), batches=mixed, forgetting=watch, share=share
    )
