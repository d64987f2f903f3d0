"""One round of learning: a task, and around it the methods that hold the tasks before it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lmworks.core import progress
from lmworks.core.errors import UserError
from lmworks.training.continual.config import HoldConfig, parse_method
from lmworks.training.continual.memory import Memory
from lmworks.training.continual.tasks import Phase

if TYPE_CHECKING:
    import torch

    from lmworks.models.adapters.base import Adapter
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.batches import Batch
    from lmworks.training.callbacks.base import Callback
    from lmworks.training.continual.rows import LearningRows
    from lmworks.training.retention.base import Several
    from lmworks.training.trainer_config import LoopConfig

_WATCHED_ROWS = 64


class LearnConfig(Protocol):
    """What is read of a stage's settings."""

    @property
    def method(self) -> str: ...
    @property
    def hold(self) -> HoldConfig: ...
    @property
    def epochs(self) -> float: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def loop(self) -> LoopConfig: ...
    @property
    def checkpoint_every_s(self) -> float: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Carried:
    """What a round is given of those before it.

    Attributes:
        fisher: of `ewc`, by parameter; None before the first task.
        bases: of `lora`, by layer.
    """

    memory: Memory = dataclasses.field(default_factory=Memory)
    fisher: Mapping[str, torch.Tensor] | None = None
    bases: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Carried:
        """What the round in `folder` left."""
        from lmworks.training.continual.online_ewc import read_fisher
        from lmworks.training.continual.stacks import read_stack

        return cls(memory=Memory.read(folder), fisher=read_fisher(folder), bases=read_stack(folder))

    def write(self, folder: Path) -> None:
        """Leave it for the next round."""
        from lmworks.training.continual.online_ewc import write_fisher
        from lmworks.training.continual.stacks import write_stack

        self.memory.write(folder)
        if self.fisher is not None:
            write_fisher(folder, self.fisher)
        if self.bases:
            write_stack(folder, self.bases)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learnt:
    """What a round gives, beside the model that was trained in place.

    Attributes:
        metrics: by phase, what a manifest keeps of its training.
        fisher, bases: as in `Carried`.
    """

    metrics: dict[str, dict[str, Any]]
    fisher: Mapping[str, torch.Tensor] | None
    bases: Mapping[str, torch.Tensor]


def learn(
    model: Model,
    tokenizer: Tokenizer,
    phases: Sequence[Phase],
    carried: Carried,
    config: LearnConfig,
    *,
    work: Path,
    label: str,
    adapter_folder: Path | None = None,
) -> Learnt:
    """Train `model` in place on the phases of a task.

    Args:
        work: folder of checkpoints, gone on from if there are some.
        adapter_folder: where the adapter of `lora` is written, before it is folded in.
    Raises: UserError for a method that does not fit, or a task with nothing to learn.
    """
    names = parse_method(config.method, config.hold)
    adapter = _adapter(model, config) if "lora" in names else None
    rehearsal = _rows(carried.memory.rehearsed_rows, tokenizer, model, config)
    metrics: dict[str, dict[str, Any]] = {}
    last: Callable[[int], Batch] | None = None
    for phase in phases:
        folder = work / phase.kind
        folder.mkdir(parents=True, exist_ok=True)
        retention = _retention(names, model, adapter, rehearsal, carried, config)
        metrics[phase.kind] = _fit(
            model, tokenizer, phase, retention, rehearsal, config, work=folder, label=label
        )
        if "ewc" in names:
            last = _rows(phase.train, tokenizer, model, config) or last
    fisher, bases = carried.fisher, carried.bases
    if last is not None:
        from lmworks.training.continual.online_ewc import carried_on

        hold = config.hold
        fisher = carried_on(fisher, model, last, rows=hold.fisher_rows, decay=hold.ewc_decay)
    if adapter is not None:
        from lmworks.models.adapters.files import save_adapter
        from lmworks.training.continual.stacks import stacked

        bases = stacked(bases, adapter)
        if adapter_folder is not None:
            save_adapter(adapter, adapter_folder)
        adapter.merge()
    return Learnt(metrics=metrics, fisher=fisher, bases=bases)


def first_fisher(
    model: Model, tokenizer: Tokenizer, carried: Carried, config: LearnConfig
) -> Carried:
    """What the weights meant before the first task, where there are rows to say it by."""
    rows = _rows(carried.memory.rehearsed_rows, tokenizer, model, config)
    names = parse_method(config.method, config.hold)
    if "ewc" not in names or carried.fisher is not None or rows is None:
        return carried
    from lmworks.training.continual.online_ewc import carried_on

    hold = config.hold
    fisher = carried_on(None, model, rows, rows=hold.fisher_rows, decay=hold.ewc_decay)
    return dataclasses.replace(carried, fisher=fisher)


def _adapter(model: Model, config: LearnConfig) -> Adapter:
    from lmworks.models.adapters.base import add_adapter
    from lmworks.models.adapters.lora import LoRAConfig

    rank = config.hold.rank
    return add_adapter(model, LoRAConfig(rank=rank, alpha=2.0 * rank), config.seed)


def _rows(
    rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, model: Model, config: LearnConfig
) -> LearningRows | None:
    """Rows as batches; None where nothing of them can be learnt."""
    from lmworks.training.continual.rows import LearningRows
    from lmworks.training.sft import context_length

    found = LearningRows(
        rows,
        tokenizer,
        context_length=context_length(config.context_length, model),
        batch_size=config.batch_size,
        seed=config.seed,
    )
    return found if len(found) else None


def _retention(
    names: Sequence[str],
    model: Model,
    adapter: Adapter | None,
    rehearsal: LearningRows | None,
    carried: Carried,
    config: LearnConfig,
) -> Several:
    """The methods that have something to hold on to."""
    from lmworks.training.continual.online_ewc import OnlineEWC
    from lmworks.training.continual.stacks import OffTheStack
    from lmworks.training.retention.base import Several, build_retention
    from lmworks.training.retention.config import RetentionConfig

    hold, found = config.hold, list[Any]()
    for name in names:
        if name == "lora" and adapter is not None:
            found.append(OffTheStack(adapter, carried.bases, hold.orthogonal))
        elif name == "ewc":
            if carried.fisher is not None:
                found.append(OnlineEWC(model, carried.fisher, hold.ewc_strength))
        elif name != "none" and (rehearsal is not None or name == "l2"):
            settings = RetentionConfig(coefficient=hold.l2_strength)
            general: Any = rehearsal
            found.append(build_retention(name, model, general, settings, hold.share))
    return Several(found)


def _fit(
    model: Model,
    tokenizer: Tokenizer,
    phase: Phase,
    retention: Several,
    rehearsal: LearningRows | None,
    config: LearnConfig,
    *,
    work: Path,
    label: str,
) -> dict[str, Any]:
    from lmworks.training.fitting import fit_stage, steps_of
    from lmworks.training.retention.base import HeldObjective, Mixed

    data, objective, loop = _learnt(model, tokenizer, phase, config)
    share = retention.strength if retention.rehearses else 0.0
    batches: Any = data.batches
    if rehearsal is not None and share:
        batches = Mixed(batches, rehearsal, share)
    fitted = fit_stage(
        model,
        HeldObjective(objective, retention),
        batches,
        config,
        work=work,
        label=f"{label}: {phase.kind}",
        num_steps=steps_of(config, data.per_epoch, elsewhere=share),
        loop=loop,
        callbacks=_watch(retention, rehearsal, config),
    )
    return fitted.metrics | {"num_rows": data.num_rows}


def _watch(
    retention: Several, rehearsal: LearningRows | None, config: LearnConfig
) -> list[Callback]:
    """Look at kept rows before and after, where a method settles by them."""
    from lmworks.training.callbacks.forgetting import Forgetting

    if rehearsal is None or not retention.settles:
        return []
    every, size = max(1, len(rehearsal) // _WATCHED_ROWS), config.batch_size
    watched = list(range(0, len(rehearsal), every))
    fixed = [rehearsal.collate(watched[i : i + size]) for i in range(0, len(watched), size)]
    return [Forgetting(fixed, every=0, budget=config.hold.budget, retention=retention)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Data:
    batches: Callable[[int], Any]
    per_epoch: float
    num_rows: int


def _learnt(
    model: Model, tokenizer: Tokenizer, phase: Phase, config: LearnConfig
) -> tuple[_Data, Any, LoopConfig]:
    """Batches, objective and loop of a phase."""
    from lmworks.training.continual.tasks import PREFERENCES
    from lmworks.training.objectives.causal import causal

    if phase.kind in PREFERENCES:
        return _preferences(model, tokenizer, phase, config)
    rows = _rows(phase.train, tokenizer, model, config)
    if rows is None:
        raise UserError(f"nothing of the task's {phase.kind} can be learnt")
    for line in rows.remarks():
        progress.say(f"  {line}")
    data = _Data(batches=rows, per_epoch=rows.batches_per_epoch, num_rows=len(rows))
    return data, causal, config.loop


def _preferences(
    model: Model, tokenizer: Tokenizer, phase: Phase, config: LearnConfig
) -> tuple[_Data, Any, LoopConfig]:
    from lmworks.training.objectives.base import build_objective
    from lmworks.training.preferences.batches import Fit, JudgedAnswers, Pairs
    from lmworks.training.preferences.reference import Referenced, frozen_copy
    from lmworks.training.preferences.rows import as_judged, as_pair, check_both_labels
    from lmworks.training.sft import context_length

    name = "kto" if phase.kind == "votes" else config.hold.objective
    settings: dict[str, Any] = {"beta": config.hold.beta} if config.hold.beta else {}
    loop, judged = config.loop, name == "kto"
    if judged:  # it compares the rows of a batch with each other
        settings["rows_at_once"] = loop.micro_batch_size
        loop = dataclasses.replace(loop, micro_batch_size=0)
    read = as_judged if judged else lambda where, row: [as_pair(where, row)]
    rows: list[Any] = [
        one for number, row in enumerate(phase.train, 1) for one in read(f"row {number}", row)
    ]
    if judged:
        check_both_labels(rows, "the task's votes")
    kind: Any = JudgedAnswers if judged else Pairs
    length = context_length(config.context_length, model)
    fit = Fit(length=length, truncation="drop")
    data = kind(rows, tokenizer, fit, batch_size=config.batch_size, seed=config.seed, count="said")
    batches: Any = data
    if name in ("dpo", "ipo", "kto"):
        batches = Referenced(data, frozen_copy(model), contextlib.nullcontext)
    found = _Data(batches=batches, per_epoch=data.order.batches_per_epoch, num_rows=len(data))
    return found, build_objective(name, settings), loop
