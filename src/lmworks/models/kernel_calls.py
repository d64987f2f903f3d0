"""Calls of compiled kernels: which channels, which arguments, on which threads, in what memory.

A call works on one sequence and some blocks of channels. How the work is cut depends on its shape
and never on the number of threads, so sums over channels come out the same on every machine.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from lmworks.core import compiled
from lmworks.models import kernel_slots
from lmworks.models.kernel_slots import LANES

_PARTS = 8  # of the channels of a sequence
_SPLIT_WORK = 1 << 17  # numbers of state to compute, from which on a second thread pays
_LOCAL = threading.local()


# What would have run, (module, kernel); None while kernels run.
_NOT_RUNNING: contextvars.ContextVar[dict[tuple[str, str], None] | None] = contextvars.ContextVar(
    "not_running", default=None
)


@contextlib.contextmanager
def not_running() -> Iterator[dict[tuple[str, str], None]]:
    """Meanwhile kernels do nothing, for tensors that have shapes and no memory.

    Yields: a mapping whose keys will be (module, kernel) of those that would have run.
    """
    wanted: dict[tuple[str, str], None] = {}
    token = _NOT_RUNNING.set(wanted)
    try:
        yield wanted
    finally:
        _NOT_RUNNING.reset(token)


def computes(*tensors: torch.Tensor | None) -> bool:
    """Whether the kernels can take these: on the CPU, and no more precise than float32."""
    given = [t for t in tensors if t is not None]
    return all(t.device.type == "cpu" and t.dtype != torch.float64 for t in given)


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """float32 with the channels of a position side by side, channels a multiple of LANES."""
    tensor = padded(tensor, LANES)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def padded(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    """float32 with zeros after the last dimension, up to a multiple; no copy if it is one."""
    missing = -tensor.shape[-1] % multiple
    return F.pad(tensor.float(), (0, missing)) if missing else tensor.float()


def parts(num_channels: int, work: int) -> list[tuple[int, int]]:
    """First and last block of each part of the channels; one part if there is little work."""
    return parts_of(-(-num_channels // LANES), work, _PARTS)


def parts_of(num_blocks: int, work: int, most: int) -> list[tuple[int, int]]:
    """First and last block of at most `most` parts; one part if there is little work."""
    count = min(most, num_blocks) if work >= _SPLIT_WORK else 1
    return list(itertools.pairwise(num_blocks * i // count for i in range(count + 1)))


def address(tensor: torch.Tensor | None, index: int = 0) -> int:
    """Where row `index` of the first dimension begins; 0 for no tensor."""
    if tensor is None or _NOT_RUNNING.get() is not None:
        return 0
    return tensor.data_ptr() + index * tensor.stride(0) * tensor.element_size()


def arguments(values: Mapping[str, int]) -> np.ndarray:
    """The array that a kernel gets, from the names in kernel_slots."""
    slots = np.zeros(kernel_slots.ARGUMENTS, dtype=np.int64)
    for name, value in values.items():
        slots[getattr(kernel_slots, name)] = value
    return slots


def work_space(size: int) -> torch.Tensor:
    """This thread's float32 memory for dequantised weights, (size,); the next call reuses it."""
    held: torch.Tensor | None = getattr(_LOCAL, "work_space", None)
    if held is None or len(held) < size:
        # NumPy's, since torch's would be a tensor without memory while a training is estimated,
        # and stay here for the real one.
        held = _LOCAL.work_space = torch.from_numpy(np.empty(size, dtype=np.float32))
    return held[:size]


def run(module: str, name: str, calls: Sequence[np.ndarray]) -> None:
    """Run a kernel once for each array of arguments."""
    module = f"lmworks.models.{module}"
    wanted = _NOT_RUNNING.get()
    if wanted is not None:
        wanted[module, name] = None
        return
    kernel = compiled.kernel(module, name)
    starts = [call.ctypes.data for call in calls]
    if len(calls) == 1 or torch.get_num_threads() == 1:
        for start in starts:
            kernel(start)
    else:
        list(_pool(os.getpid()).map(kernel, starts))


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    # By process: a fork has the pool's queue but none of its threads.
    return ThreadPoolExecutor(compiled.threads(), thread_name_prefix="scan")
