"""Few new positions through all layers in one call of a compiled kernel, without the modules.

A decode step of a small model spends more time in Python and in the start of each operation than
in products. Here a plan is made once of a model: the addresses of its weights and the settings of
its layers. A step is then one call for all layers, on a team of threads, and reads and writes the
pages of the cache where they lie. What the kernel can't do, modules do: `why_not_fused` says why.

A plan lives as long as its model and holds the weights as they are. It is made anew if a module or
a parameter was replaced or added, and is not used where a hook stands on a module; weights that
change in place are seen.
"""

from __future__ import annotations

import functools
import threading
import weakref
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from lmworks.core import compiled, machine
from lmworks.models import fused_slots as f
from lmworks.models import packed_slots as p
from lmworks.models.fused_plan import Plan, make_plan
from lmworks.models.thread_team import run_together

if TYPE_CHECKING:
    from lmworks.models.cache import CacheView
    from lmworks.models.cache_step import CacheStep
    from lmworks.models.model import Model

MOST_POSITIONS = 512  # new ones of all rows together; more go through the modules
_SPLIT_WORK = 1 << 21  # products from which on a second thread pays
_PLANS: weakref.WeakKeyDictionary[Any, Plan] = weakref.WeakKeyDictionary()
_LOCAL = threading.local()


def why_not_fused(model: Model) -> str:
    """What in a model keeps its steps from being fused; empty if nothing does."""
    return _plan(model).reason


def fused_states(
    model: Model,
    input_ids: torch.Tensor,
    view: CacheView,
    *,
    logits: bool = False,
    last_only: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """The states after the last norm (B, T, H), and logits (B, T or 1, V) if they are asked for.

    None, and nothing has happened, where the step has to go through the modules.
    Raises: as `Model.forward` does.
    """
    count = input_ids.shape[0] * input_ids.shape[1]
    if not 0 < count <= MOST_POSITIONS or (torch.is_grad_enabled() and model.training):
        return None
    plan = _plan(model)
    if plan.reason or (logits and not plan.has_head) or not plan.fits(view, input_ids.shape[1]):
        return None
    rows = model._rows(input_ids)  # an unknown id is refused before the cache changes
    step = view.begin(*input_ids.shape[:2])
    with torch.no_grad():
        x = model._embed(rows, step.positions, None).float()
        if x.shape[2:] != (model.config.hidden_size,):
            raise ValueError(
                f"rows of {tuple(x.shape[2:])} for states of {model.config.hidden_size}"
            )
        out = _run(plan, step, x, logits, last_only)
    step.commit()
    return out


def _plan(model: Model) -> Plan:
    plan = _PLANS.get(model)
    if plan is None or not plan.holds():
        plan = _PLANS[model] = make_plan(model)
    return plan


def _run(
    plan: Plan, step: CacheStep, x: torch.Tensor, logits: bool, last_only: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    rows, new, hidden = x.shape
    count = rows * new
    states = x.detach().clone(memory_format=torch.contiguous_format)
    threads = 1
    if count * plan.num_weights >= _SPLIT_WORK:
        threads = min(torch.get_num_threads(), usable_cores(), f.MOST_THREADS)
    memory = _memory(plan, count, step.total, threads)
    places, tables = plan.places(step)
    stages = np.zeros(2 * f.STAGES_OF_LAYER * (plan.num_layers + 1), dtype=np.int64)
    slots = np.array(step.view.slots, dtype=np.int64)
    table = np.ascontiguousarray(step.table, dtype=np.int32)
    if table.size and not 0 <= table.min() <= table.max() < step.view.cache.pool.num_pages:
        raise ValueError("a row of the cache names a page that there is not")
    found, found_at, size, padded = None, 0, 0, 0
    if logits:
        size = int(plan.head[p.ROWS])
        padded = -(-size // p.TILE) * p.TILE
        found = torch.empty(rows, 1 if last_only else new, padded)
        found_at = found.data_ptr()
    told = {
        f.THREADS: threads, f.STAGES: stages.ctypes.data, f.COUNT: count, f.ROWS: rows,
        f.NEW: new, f.PLACES: places.ctypes.data, f.TABLE: table.ctypes.data,
        f.TABLE_ROW: table.shape[1], f.STARTS: step.starts.ctypes.data,
        f.CACHE_SLOTS: slots.ctypes.data, f.X: states.data_ptr(), f.STATES: states.data_ptr(),
        f.LOGITS: found_at, f.LOGITS_ROW: padded, f.LAST_ONLY: int(last_only),
    }  # fmt: skip
    a = memory.arguments[:threads].copy()  # of this call alone: a helper may come late
    a[:, list(told)] = list(told.values())
    keep = (plan, a, stages, table, slots, step, states, found, memory, places, tables)
    run_together(_kernel(), list(a), keep)
    if found is not None:
        found = found[..., :size]
        if plan.logit_scale != 1:
            found *= plan.logit_scale
    return states.view(rows, new, hidden), found


@functools.cache
def _kernel() -> compiled.Kernel:
    return compiled.kernel("lmworks.models.fused_step_kernels", "step")


usable_cores = functools.cache(machine.usable_cores)  # which reads a file, and does not change


class _Memory:
    """A thread's buffers for steps of up to so many positions; used again for the next.

    Attributes:
        arguments: (threads, ARGUMENTS) int64, with what is the same in all of these steps.
    """

    def __init__(self, plan: Plan, count: int, total: int, threads: int) -> None:
        # Weakly, since a thread keeps its memory: a model that is gone takes its weights along.
        self.plan, self.fits = weakref.ref(plan), (count, total, threads)
        self._layers = (plan.layers, plan.end_norm, plan.head)
        sizes = {slot: count * width * 4 for slot, width in plan.widths.items()}
        sizes[f.RECORDS] = count * plan.widest // p.BLOCK * p.RECORD_BYTES
        sizes[f.STEP_SIZES] = count * 4
        own = 4 * (p.MOST_AT_ONCE * p.TILE + plan.scores(total))
        own = -(-own // 64) * 64
        ends = np.cumsum([-(-size // 64) * 64 for size in sizes.values()])
        self._bytes = np.empty(int(ends[-1]) + own * threads + 64, dtype=np.uint8)
        start = -(-self._bytes.ctypes.data // 64) * 64
        a = self.arguments = np.zeros((threads, f.ARGUMENTS), dtype=np.int64)
        for slot, begin in zip(sizes, [0, *ends[:-1].tolist()]):
            a[:, slot] = start + begin
        a[:, f.SCRATCH] = start + int(ends[-1]) + own * np.arange(threads)
        a[:, f.HIDDEN], a[:, f.NUM_LAYERS] = plan.widths[f.NORMED], plan.num_layers
        a[:, f.LAYERS] = plan.layers.ctypes.data
        a[:, f.END_NORM], a[:, f.HEAD] = plan.end_norm.ctypes.data, plan.head.ctypes.data
        self._calls = np.zeros((threads, p.ARGUMENTS), dtype=np.int64)
        self._calls[:, p.RECORDS] = a[:, f.RECORDS]
        self._calls[:, p.STEP_SIZES] = a[:, f.STEP_SIZES]
        self._calls[:, p.SCRATCH] = a[:, f.SCRATCH]
        a[:, f.CALL] = self._calls.ctypes.data + self._calls.strides[0] * np.arange(threads)
        a[:, f.PRODUCT] = compiled.address("lmworks.models.packed_kernels", "product")


def _memory(plan: Plan, count: int, total: int, threads: int) -> _Memory:
    total = -(-total // 512) * 512
    held = cast("_Memory | None", getattr(_LOCAL, "memory", None))
    if held is None or held.plan() is not plan or not _enough(held, count, total, threads):
        held = _LOCAL.memory = _Memory(plan, count, total, threads)
    return held


def _enough(held: _Memory, count: int, total: int, threads: int) -> bool:
    most, longest, team = held.fits
    return count <= most and total <= longest and threads <= team
