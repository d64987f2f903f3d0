"""Who computes the gradients of a step: one process here, many in `training.distributed`.

The trainer asks a strategy for a few things and knows nothing else of processes: to prepare the
model and its optimizer, for the gradients of a batch and their norm, and for a state that can be
saved and put back.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from lmworks.core import processes
from lmworks.training.batches import Rows, micro_batches
from lmworks.training.distributed.plan import ParallelConfig, resolved
from lmworks.training.optimizers.base import Optimizer, OptimizerConfig, build_optimizer
from lmworks.training.step_clock import StepClock

if TYPE_CHECKING:
    from torch import nn

    from lmworks.training.objectives.base import Loss, Objective
    from lmworks.training.trainer_config import LoopConfig

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What the rows of a step gave, without a graph.

    Attributes:
        loss: mean over the targets, nats or whatever the objective measures.
        num_targets: of all processes together.
        metrics: means, weighted by targets.
    """

    loss: float
    num_targets: int
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How gradients are computed: what may change speed and memory, and the least in the result.

    Attributes:
        micro_batch_size: rows that go through the model at a time; 0 for all.
        precision: of the products: float32, bfloat16 or float16. The weights stay as they are.
        scale: what the loss is multiplied by, and the gradients divided by, against float16's
            small range.
        clock: told what is a forward and what a backward.
    """

    micro_batch_size: int = 0
    precision: str = "float32"
    scale: float = 1.0
    clock: StepClock = dataclasses.field(default_factory=StepClock, compare=False)

    @contextlib.contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        """Products in the wanted precision."""
        if self.precision == "float32":
            yield
            return
        with torch.autocast(device.type, dtype=_TYPES[self.precision]):
            yield


class Strategy(Protocol):
    """What the trainer needs of the process or processes that it runs in."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""

    def any_process(self, flag: bool) -> bool:
        """Whether any process says so; the same answer in all of them."""

    def prepare(self, model: nn.Module, config: LoopConfig) -> nn.Module:
        """The module that this process trains: the model, or its part of it."""

    def optimizer(self, model: nn.Module, config: OptimizerConfig) -> Optimizer:
        """What updates the module that `prepare` gave."""

    def finish(self, model: nn.Module, trained: nn.Module) -> None:
        """Bring what was learnt into `model`, from which `prepare` made `trained`."""

    def gradients(
        self, model: nn.Module, objective: Objective, batch: Rows, compute: Compute
    ) -> Figures:
        """Leave in `.grad` the gradient of the mean loss over all targets of the whole `batch`."""

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        """Scale gradients down to `max_norm`; the norm that they had."""

    def evaluate(
        self, model: nn.Module, objective: Objective, batches: Sequence[Rows], compute: Compute
    ) -> Figures:
        """Mean loss over the targets of `batches`, without gradients."""

    def model_state(self, model: nn.Module) -> dict[str, Any]:
        """What is trained, whole, by name: as one process would hold it."""

    def load_model_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Put back what `model_state` gave, perhaps to another number of processes."""

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's state, whole."""

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Put back what `optimizer_state` gave."""


class OneProcess:
    """Everything in this process: the strategy that the others have to equal."""

    is_main = True

    def any_process(self, flag: bool) -> bool:
        """See `Strategy`."""
        return flag

    def prepare(self, model: nn.Module, config: LoopConfig) -> nn.Module:
        """Nothing is to be laid out."""
        return model

    def optimizer(self, model: nn.Module, config: OptimizerConfig) -> Optimizer:
        """See `Strategy`."""
        return build_optimizer(model, config)

    def finish(self, model: nn.Module, trained: nn.Module) -> None:
        """They are the same."""

    def gradients(
        self, model: nn.Module, objective: Objective, batch: Rows, compute: Compute
    ) -> Figures:
        """See `Strategy`. Micro-batches weigh by their targets, so that their sum is the whole."""
        return accumulate(model, objective, batch, compute, total=batch.num_targets)

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        """See `Strategy`."""
        return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))

    def evaluate(
        self, model: nn.Module, objective: Objective, batches: Sequence[Rows], compute: Compute
    ) -> Figures:
        """See `Strategy`."""
        with torch.no_grad():
            found = [
                (part.num_targets, forward(model, objective, part, compute))
                for batch in batches
                for part in micro_batches(batch, compute.micro_batch_size)
            ]
        return mean_figures(found)

    def model_state(self, model: nn.Module) -> dict[str, Any]:
        """See `Strategy`: trained parameters, and all buffers."""
        return trained_state(model)

    def load_model_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        """See `Strategy`. Raises: KeyError for a parameter that the state lacks."""
        load_trained_state(model, state)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """See `Strategy`."""
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """See `Strategy`."""
        optimizer.load_state_dict(state)


def strategy_for(config: ParallelConfig) -> Strategy:
    """The plan's strategy where a launcher started several processes, else this process alone.

    Raises: UserError for a plan of several processes in one.
    """
    if processes.several():
        from lmworks.training.distributed.strategy import Distributed

        return Distributed(config)
    resolved(config, 1)
    return OneProcess()


def forward(model: nn.Module, objective: Objective, batch: Rows, compute: Compute) -> Loss:
    """One call of the objective, in the wanted precision."""
    device = next(model.parameters()).device
    with compute.autocast(device):
        return objective(model, batch.to(device))  # type: ignore[arg-type]


def accumulate(
    model: nn.Module, objective: Objective, batch: Rows, compute: Compute, *, total: int
) -> Figures:
    """Add the gradients of `batch` to what is in `.grad`, as its share of `total` targets.

    Raises: UserError for a batch without a target, or an objective that needs its rows together.
    """
    size = compute.micro_batch_size
    if getattr(objective, "whole_batch", False):
        size = 0  # such an objective cuts its batch itself, if it can
    found = []
    for part in micro_batches(batch, size):
        with compute.clock.part("forward"):
            loss = forward(model, objective, part, compute)
        whole = loss.value if loss.auxiliary is None else loss.value + loss.auxiliary
        weight = part.num_targets / total * compute.scale
        # One part that is the whole: not multiplied, so that it is the plain loop to the bit.
        with compute.clock.part("backward"):
            (whole if weight == 1 else whole * weight).backward()  # type: ignore[no-untyped-call]
        # Only figures are kept: a graph that is no longer needed is let go of before the next part.
        value = loss.value.detach()
        found.append((part.num_targets, dataclasses.replace(loss, value=value, auxiliary=None)))
        del loss, whole
    if compute.scale != 1:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(compute.scale)
    return mean_figures(found)


def mean_figures(found: Sequence[tuple[int, Loss]]) -> Figures:
    """Means over parts, weighted by their targets."""
    total = sum(count for count, _ in found)
    names = dict.fromkeys(name for _, loss in found for name in loss.metrics)
    return Figures(
        loss=sum(loss.value.item() * count for count, loss in found) / total,
        num_targets=total,
        metrics={
            name: sum(loss.metrics.get(name, 0.0) * count for count, loss in found) / total
            for name in names
        },
    )


def trained_state(model: nn.Module) -> dict[str, Any]:
    """Parameters that are trained and all buffers that are saved; what is frozen is left out."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_trained_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Put back what `trained_state` gave. Raises: KeyError for a name that is missing."""
    missing, _ = model.load_state_dict(state, strict=False)
    lost = set(missing) & trained_state(model).keys()
    if lost:
        raise KeyError(f"the checkpoint lacks {min(lost)}")
