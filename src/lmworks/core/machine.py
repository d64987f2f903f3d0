"""Facts about this machine that other rooms need: usable cores, memory, peak memory of a block."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_STATM = Path("/proc/self/statm")


def usable_cores() -> int:
    """Cores this process may run on: the affinity mask and the cgroup's CPU quota both count."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def memory_bytes() -> int:
    """Physical memory of the machine, in bytes; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def resident_bytes() -> int:
    """Memory this process holds now, in bytes."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def best_seconds(run: Callable[[], object], seconds: float = 0.4) -> float:
    """The fastest of as many runs as the time allows: what the machine can do undisturbed."""
    run()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


class PeakMemory:
    """`with PeakMemory() as peak: ...; peak.bytes` is the most memory the process held meanwhile.

    A thread samples every 20 ms, so a shorter spike can be missed; the process-wide maximum that
    the system keeps can't be reset and would blame one stage for another.
    """

    def __init__(self, interval_s: float = 0.02) -> None:
        self.bytes = 0
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(self._interval_s):
            self.bytes = max(self.bytes, resident_bytes())

    def __enter__(self) -> PeakMemory:
        self.bytes = resident_bytes()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, resident_bytes())


def give_back_memory() -> None:
    """Hand memory that was freed back to the system, as far as the C library knows how to."""
    import ctypes
    import gc

    gc.collect()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)
