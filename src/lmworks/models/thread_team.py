"""Threads that help with a kernel that one thread began; see `kernel_threads`.

Helpers are shared by all calls. A call does not wait for one: where all are busy it does the work
alone, and a helper that comes when all is done finds nothing left.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmworks.core.compiled import Kernel

_Job = tuple[Kernel, np.ndarray, Any]


class _Helpers:
    """Threads that run what they are given."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def wake(self, count: int) -> int:
        """See that there are so many; how many, which is fewer where the system gives no more."""
        if len(self._threads) >= count:
            return count
        with self._lock:
            while len(self._threads) < count:
                thread = threading.Thread(target=self._run, name="lmworks-team", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    break
                self._threads.append(thread)
            return min(count, len(self._threads))

    def _run(self) -> None:
        while True:
            kernel, arguments, keep = self.jobs.get()
            kernel(arguments.ctypes.data)
            # What the call's threads share has to live until this one is out of the kernel too.
            del kernel, arguments, keep


_HELPERS = _Helpers()


def run_together(kernel: Kernel, arguments: Sequence[np.ndarray], keep: Any) -> None:
    """The kernel for each array of arguments at the same time, the first one here.

    Args:
        keep: whatever holds the memory that the arguments point to.
    """
    if len(arguments) > 1:
        # A job that nobody takes would be held for ever.
        for one in arguments[1 : 1 + _HELPERS.wake(len(arguments) - 1)]:
            _HELPERS.jobs.put((kernel, one, keep))
    kernel(arguments[0].ctypes.data)


def _begin_anew() -> None:
    global _HELPERS
    _HELPERS = _Helpers()  # a child has none of its parent's threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
