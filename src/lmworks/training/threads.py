"""How this process uses the machine while it trains: threads, and what happens to freed memory."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

from lmworks.core.machine import usable_cores
from lmworks.core.processes import processes_here

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MXFAST = -1, -3, 1  # glibc's malloc.h
MMAP_THRESHOLD = 32 * 2**20  # larger ones are refused by glibc
_KEPT_BYTES = 2**30


# glibc's threads keep the last small chunks that were freed for themselves.
TUNABLES = "GLIBC_TUNABLES"
_KEEP_NONE = "glibc.malloc.tcache_count=0"


def small_chunks_kept() -> bool:
    """Whether glibc's threads keep small chunks, so that large ones beside them can't be joined."""
    return is_glibc() and _KEEP_NONE not in os.environ.get(TUNABLES, "").split(":")


def is_glibc() -> bool:
    """Whether this process runs on the GNU C library."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):
        return False


def without_kept_chunks() -> dict[str, str] | None:
    """The environment in which a process that trains should be started; None if it is this one,
    or if how many chunks are kept was chosen by whoever started it.

    torch's blocks are aligned, so each is cut out of a longer one, and the splinters at its ends
    are small chunks. While a thread keeps them, the hole that a freed block leaves is a few bytes
    too small for the next block of that size: a training whose layers are computed again takes a
    quarter more memory. The setting is read when a process starts and never again.
    """
    given = os.environ.get(TUNABLES, "")
    if not small_chunks_kept() or _KEEP_NONE.partition("=")[0] in given:
        return None
    return {**os.environ, TUNABLES: f"{given}:{_KEEP_NONE}" if given else _KEEP_NONE}


def set_threads(threads: int) -> int:
    """Let torch use `threads` threads, or for 0 this process's share of the usable cores.

    torch counts the machine's cores, not the ones a container may use, and oversubscribed
    threads wait for each other. Returns: the number.
    """
    import torch

    keep_freed_memory()
    threads = threads or max(1, usable_cores() // processes_here())
    torch.set_num_threads(threads)
    return threads


@functools.cache
def keep_freed_memory() -> bool:
    """Have glibc keep the memory of freed activations instead of giving it back at every step.

    A training step allocates the same large blocks again and again; mapping them anew costs 5 to
    10 % of a small model's step. Splinters beside aligned blocks are joined with them again at once
    instead of being kept in a list of small blocks: else a block that was freed is a few bytes too
    small for the next one of its size, and the heap grows. Returns whether the C library took the
    settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    mallopt(_M_MXFAST, 0)
    took = mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
    return bool(took and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
