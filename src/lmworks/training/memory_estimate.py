"""How much memory a training will take, told before it starts.

Two steps of the real trainer are made with tensors that have shapes only (`shape_tensors`): the
model, autograd, accumulation, recomputation, clipping and the optimizer are the ones that will run,
so nothing is assumed about what they keep. What they take and give back is then played through the
allocator's rules (`heap`), and what a process holds before its first tensor is added, the compiled
kernels that these steps would call among it. How small blocks lie between the large ones is chance:
several kinds of them are played, and the most counts.

Left out: what a kernel takes for itself and gives back before it returns, compiling a kernel (once
per machine), and reading a corpus. Where threads keep small chunks (`threads.small_chunks_kept`),
layers that are computed again can take a fifth more than is told here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lmworks.core import compiled
from lmworks.core.machine import resident_bytes
from lmworks.models.config.patterns import Sizes, decoder_config
from lmworks.models.feed_forward import MLP
from lmworks.models.kernel_calls import not_running
from lmworks.models.layer import Layer
from lmworks.models.norms import LayerNorm, RMSNorm
from lmworks.training.heap import peak_resident
from lmworks.training.shape_tensors import Event, MemoryRecord, shape_twin
from lmworks.training.step_clock import StepClock
from lmworks.training.threads import MMAP_THRESHOLD, small_chunks_kept

if TYPE_CHECKING:
    from lmworks.training.batches import Rows
    from lmworks.training.objectives.base import Objective
    from lmworks.training.trainer_config import LoopConfig

WEIGHTS, GRADIENTS, STATES = "weights", "gradients", "optimizer"
_STEPS = 2  # the second one has the optimizer's states beside all else
_OF_A_TENSOR = (208, 112, 320)  # bytes of what torch and autograd keep beside its numbers, about
_BESIDE = ((), _OF_A_TENSOR, 2 * _OF_A_TENSOR, 5 * _OF_A_TENSOR)
_CACHED = 21  # of each small size, where chunks are kept: those of a thread and what holds them
_LOADED: dict[tuple[str, str], int] = {}  # kernels that an estimate loaded -> bytes that took


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one process.

    Attributes:
        peak: the most that it will hold.
        baseline: what it holds before the model is made.
        live: tensors alive at the fullest moment; the rest of the peak is what the allocator can't
            give away between them.
        parts: `live` by what it is for, the largest first.
        when: during what the fullest moment is.
    """

    peak: int
    baseline: int
    live: int
    parts: dict[str, int]
    when: str


def estimate(
    model: nn.Module,
    objective: Objective,
    batch: Rows,
    loop: LoopConfig,
    *,
    heldout: Sequence[Rows] = (),
    baseline: int = 0,
) -> MemoryEstimate:
    """Estimate training `model` on batches like `batch`; neither is changed.

    Args:
        model: on any device; on "meta" it needs no memory.
        heldout: what held-out looks will read.
        baseline: bytes that the process holds before the model is made, without
            `loaded_for_estimates`.
    Raises: whatever the training itself would raise in its first step.
    """
    record = record_steps(model, objective, batch, loop, heldout=heldout)
    steps = [(e.block, e.num_bytes) for e in record.events]
    cached = _CACHED if small_chunks_kept() else 0
    held = max(
        peak_resident(steps, MMAP_THRESHOLD, beside=beside, cached=cached) for beside in _BESIDE
    )
    baseline += sum(kernel_bytes(*kernel) for kernel in record.kernels)
    at = _fullest(record.events)
    parts: Counter[str] = Counter()
    for event in record.events[: at + 1]:
        parts[record.labels[event.block]] += event.num_bytes
    return MemoryEstimate(
        peak=baseline + held,
        baseline=baseline,
        live=sum(parts.values()),
        parts={name: size for name, size in parts.most_common() if size},
        when=record.events[at].part,
    )


def record_steps(
    model: nn.Module,
    objective: Objective,
    batch: Rows,
    loop: LoopConfig,
    *,
    heldout: Sequence[Rows] = (),
) -> MemoryRecord:
    """What two steps take and give back, weights first."""
    from lmworks.training.strategy import OneProcess
    from lmworks.training.trainer import Trainer

    size = loop.micro_batch_size
    if 0 < 2 * size < batch.num_rows:
        batch = batch.rows(0, 2 * size)  # one part follows another: two show what all do
    loop = dataclasses.replace(loop, compile=False, device="cpu", eval_every=_STEPS)
    with (
        tempfile.TemporaryDirectory() as work,
        not_running() as kernels,
        MemoryRecord() as record,
    ):
        record.kernels = kernels
        record.label = WEIGHTS
        twin = shape_twin(model)
        for tensor in (*twin.parameters(), *twin.buffers()):
            record.take(tensor)
        record.label = STATES
        trainer = Trainer(
            twin,
            objective,
            lambda number: batch,
            loop,
            num_steps=_STEPS + 1,
            heldout=heldout[:1],
            work=Path(work),
            strategy=OneProcess(),
            clock=_Parts(record),
        )
        record.label = ""
        twin.train()
        with _named_by_module(record):
            for step in range(_STEPS):
                trainer.take_step(step)
        _name_what_stays(record, twin)
    return record


def kernel_bytes(module: str, name: str) -> int:
    """What this process came to hold when a kernel was loaded for an estimate.

    0 for one that was there before, or that is not compiled yet.
    """
    key = (module, name)
    if key not in _LOADED:
        before = resident_bytes()
        if not compiled.is_built(module):  # which loads the compiler to ask
            return 0
        compiled.kernel(module, name)
        _LOADED[key] = max(0, resident_bytes() - before)
    return _LOADED.get(key, 0)


def loaded_for_estimates() -> int:
    """Bytes of all kernels that estimates have loaded; an estimate's baseline is without them."""
    return sum(_LOADED.values())


class _Parts(StepClock):
    """Tells the record what goes on, where a clock would count seconds."""

    def __init__(self, record: MemoryRecord) -> None:
        super().__init__()
        self._record = record

    def _switch(self, name: str) -> str:
        before, self._record.part = self._record.part, name
        return before


@contextlib.contextmanager
def _named_by_module(record: MemoryRecord) -> Iterator[None]:
    """Blocks that a forward takes are called after the kind of module that took them."""
    outer: list[str] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        outer.append(record.label)
        if record.part == "forward":
            record.label = _kind(module) or record.label

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        record.label = outer.pop()

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _kind(module: nn.Module) -> str:
    """What a module is called in the table of an estimate, or "" for part of something larger."""
    if isinstance(module, Layer):
        return "residual"
    if isinstance(module, RMSNorm | LayerNorm):
        return "norms"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, MLP):
        return "mlp"
    return str(getattr(getattr(module, "config", None), "kind", ""))


def _name_what_stays(record: MemoryRecord, model: nn.Module) -> None:
    """Gradients and the optimizer's states are known by what is alive after a step."""
    alive = set()
    for event in record.events:
        alive.add(event.block) if event.num_bytes > 0 else alive.discard(event.block)
    for block in alive:
        if record.labels[block] == "optimizer":
            record.labels[block] = STATES
    for parameter in model.parameters():
        if parameter.grad is not None:
            record.labels[record.take(parameter.grad)] = GRADIENTS


def _fullest(events: Sequence[Event]) -> int:
    """The number of the event after which most is alive."""
    live = most = at = 0
    for number, event in enumerate(events):
        live += event.num_bytes
        if live > most:
            most, at = live, number
    return at


@functools.cache
def process_baseline() -> int:
    """Bytes that this process holds once it has trained something tiny, so with all that is loaded
    on the way: libraries, thread pools, work space of the matrix products."""
    import torch

    from lmworks.models.model import Model
    from lmworks.training.batches import Batch
    from lmworks.training.objectives.causal import causal
    from lmworks.training.trainer import Trainer
    from lmworks.training.trainer_config import LoopConfig

    config = decoder_config("attention", depth=1, vocab_size=256, sizes=Sizes(hidden_size=128))
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    ids = torch.zeros(1, 64, dtype=torch.long)
    batch = Batch(input_ids=ids, labels=ids)
    with tempfile.TemporaryDirectory() as work:
        trainer = Trainer(
            model, causal, lambda number: batch, LoopConfig(), num_steps=1, work=Path(work)
        )
        model.train()
        trainer.take_step(0)
    return resident_bytes() - loaded_for_estimates()
