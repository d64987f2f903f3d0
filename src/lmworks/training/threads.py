"""How many threads torch may use in this process."""

from __future__ import annotations

from lmworks.core.machine import usable_cores


def set_threads(threads: int) -> int:
    """Let torch use `threads` threads, or all usable cores for 0; returns the number.

    torch counts the machine's cores, not the ones a container may use, and oversubscribed
    threads wait for each other.
    """
    import torch

    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    return threads
