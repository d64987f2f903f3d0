"""Ctrl-C, or the system's wish that a process end, between two steps and not in one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """SIGINT and SIGTERM ask the loop to stop after the running step; a second one stops at once.

    What is yielded gives the number of the signal that came, or 0.
    """
    asked = 0

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = number

    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        former = [signal.signal(number, ask) for number in signals]
    except ValueError:  # not the main thread: signals are somebody else's business
        yield lambda: 0
        return
    try:
        yield lambda: asked
    finally:
        for number, handler in zip(signals, former, strict=True):
            signal.signal(number, handler)
