"""Will it fit? And if not, what to lower and by how much, tried out with `memory_estimate`.

Rows at a time and layers that are computed again come first: they leave the result alone. What
changes the training (a smaller optimizer, a shorter context, a smaller model) is only named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lmworks.core import progress
from lmworks.core.errors import UserError
from lmworks.core.machine import memory_bytes, resident_bytes

if TYPE_CHECKING:
    from lmworks.training.memory_estimate import MemoryEstimate
    from lmworks.training.trainer import Trainer
    from lmworks.training.trainer_config import LoopConfig

_SURELY = 1.15  # times the memory there is: more than an estimate is off
_WORTH_A_LOOK = 0.1  # share of the memory that weights, gradients and states take at least
_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """What to change. `loop` is None where nothing that leaves the result alone is enough."""

    loop: LoopConfig | None
    estimate: MemoryEstimate  # with `loop`, or of the smallest that was tried
    words: str


def what_to_lower(
    estimate_of: Callable[[LoopConfig], MemoryEstimate], loop: LoopConfig, num_rows: int, limit: int
) -> Advice:
    """The first change that brings a training under `limit` bytes, the cheapest in time first.

    Args:
        estimate_of: the estimate with other settings of the loop.
        num_rows: of a step.
    """
    smallest: MemoryEstimate | None = None
    for again in sorted({loop.activation_checkpointing, True}):
        least = dataclasses.replace(loop, micro_batch_size=1, activation_checkpointing=again)
        smallest = estimate_of(least)
        if smallest.peak > limit:
            continue
        for size in _halves(loop.micro_batch_size or num_rows, include_first=again):
            tried = dataclasses.replace(least, micro_batch_size=size)
            found = smallest if size == 1 else estimate_of(tried)
            if found.peak <= limit:
                return Advice(loop=tried, estimate=found, words=_changes(loop, tried, found))
    assert smallest is not None
    parts = smallest.parts
    fixed = sum(parts.get(name, 0) for name in ("weights", "gradients", "optimizer"))
    words = (
        f"no setting that leaves the result alone fits: one row at a time and layers computed "
        f"again still take {megabytes(smallest.peak)}, {megabytes(smallest.peak - limit)} too "
        f"much; weights, gradients and the optimizer are {megabytes(fixed)} of it: a smaller "
        "model, --set loop.optimizer.name=adamw_8bit, an adapter, or a shorter context"
    )
    return Advice(loop=None, estimate=smallest, words=words)


def _halves(size: int, *, include_first: bool) -> Iterator[int]:
    if include_first:
        yield size
    while size > 1:
        size = -(-size // 2)
        yield size


def _changes(old: LoopConfig, new: LoopConfig, found: MemoryEstimate) -> str:
    sets = []
    if new.micro_batch_size != old.micro_batch_size:
        sets.append(f"--set loop.micro_batch_size={new.micro_batch_size}")
    if new.activation_checkpointing != old.activation_checkpointing:
        sets.append("--set loop.activation_checkpointing=true")
    return f"{' '.join(sets)} takes about {megabytes(found.peak)} and gives the same result"


def megabytes(num_bytes: float) -> str:
    """`1,234 MB`, of 1e6 bytes."""
    return f"{num_bytes / 1e6:,.0f} MB"


def usable_memory() -> int:
    """Bytes that this process may use at most: the machine's, or its container's; 0 if unknown."""
    found = [memory_bytes()]
    for name in _LIMIT_FILES:
        try:
            found.append(int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return min((size for size in found if size), default=0)


def check_memory(trainer: Trainer, step: int) -> None:
    """Say what a training that is about to begin will take; refuse one that can't fit.

    Quiet small trainings are not looked at, since the look takes about as long as a step.
    Raises: UserError for more than there is, with what to lower.
    """
    limit = _limit(trainer)
    trained = sum(4 * p.numel() for p in trainer.model.parameters() if p.requires_grad)
    frozen = sum(4 * p.numel() for p in trainer.model.parameters() if not p.requires_grad)
    large = limit and 4 * trained + frozen > _WORTH_A_LOOK * limit
    if not (progress.shown() or large) or not trainer.alone:
        return
    found = _estimate(trainer, step, trainer.config)
    if found is None:
        return
    progress.say(
        f"  about {megabytes(found.peak)} of memory at the most, {_largest(found)}"
        + (f"; {megabytes(limit)} are there" if limit else "")
    )
    if limit and found.peak > _SURELY * limit:
        raise UserError(f"out of memory before it starts: {_advice(trainer, step, found, limit)}")


def memory_error(trainer: Trainer, step: int, error: BaseException) -> UserError | None:
    """What to tell of an error that says that memory is out; None for any other."""
    if not isinstance(error, MemoryError) and not any(word in str(error) for word in _WORDS):
        return None
    told = f"out of memory at step {step}"
    found = _estimate(trainer, step, trainer.config) if trainer.alone else None
    limit = min(_limit(trainer) or 2**62, int(0.9 * found.peak) if found else 2**62)
    if found is None:
        return UserError(f"{told}: lower --set loop.micro_batch_size, which changes no result")
    return UserError(f"{told}: {_advice(trainer, step, found, limit)}")


def _advice(trainer: Trainer, step: int, found: MemoryEstimate, limit: int) -> str:
    def estimate_of(loop: LoopConfig) -> MemoryEstimate:
        return _estimate(trainer, step, loop) or found

    rows = trainer.batch_of(step).num_rows
    advice = what_to_lower(estimate_of, trainer.config, rows, limit)
    return f"it takes about {megabytes(found.peak)}, {_largest(found)}; {advice.words}"


def _estimate(trainer: Trainer, step: int, loop: LoopConfig) -> MemoryEstimate | None:
    """None where an operation can't be done with shapes alone."""
    from lmworks.training.memory_estimate import estimate, loaded_for_estimates

    held = 0
    if trainer.device.type != "cuda":
        held = resident_bytes() - loaded_for_estimates() - _held_by(trainer)
    try:
        return estimate(
            trainer.model,
            trainer.objective,
            trainer.batch_of(step),
            loop,
            heldout=trainer.heldout,
            baseline=max(0, held),
        )
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None


def _held_by(trainer: Trainer) -> int:
    """Bytes of the tensors that are there already and are counted in an estimate."""
    import torch
    from torch.utils._pytree import tree_leaves

    state = tree_leaves(trainer.optimizer.state_dict())
    tensors = [*trainer.model.parameters(), *(x for x in state if isinstance(x, torch.Tensor))]
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    return sum(x.untyped_storage().nbytes() for x in (*tensors, *gradients))


def _limit(trainer: Trainer) -> int:
    if trainer.device.type != "cuda":
        return usable_memory()
    import torch

    return int(torch.cuda.mem_get_info(trainer.device)[1])


def _largest(found: MemoryEstimate) -> str:
    """`activations of mlp 120 MB, weights 40 MB and optimizer 30 MB`."""
    parts = [f"{name} {megabytes(size)}" for name, size in list(found.parts.items())[:3]]
    return "most of it " + ", ".join(parts) if parts else ""
