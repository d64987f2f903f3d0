"""Where the time of a training goes: seconds by part of a step, for some microseconds a step.

A part that runs inside another is taken out of it, so that the parts add up to the whole. A GPU
works behind the program's back: there, marks are put into its queue instead of reading a clock, and
it is only waited for when somebody asks for the sums.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PARTS = ("data", "forward", "backward", "clip", "optimizer", "held-out", "checkpoint", "other")
_MOST_MARKS = 512  # of a GPU's queue, before they are summed up


class StepClock:
    """`with clock.part("forward"): ...` adds to `clock.seconds()["forward"]`."""

    def __init__(self, device_type: str = "cpu") -> None:
        self._on_gpu = device_type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Forget what was counted; from now on it is "other" until somebody says what."""
        self._seconds: dict[str, float] = {}
        self._now, self._marks = "other", [("other", self._mark())]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside counts as `name`."""
        before = self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def seconds(self) -> dict[str, float]:
        """Seconds of each part until now, in the order of `PARTS`."""
        self._switch(self._now)
        self._sum_up()
        return {name: self._seconds[name] for name in PARTS if name in self._seconds}

    def _switch(self, name: str) -> str:
        before, self._now = self._now, name
        self._marks.append((name, self._mark()))
        if not self._on_gpu or len(self._marks) > _MOST_MARKS:
            self._sum_up()
        return before

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _sum_up(self) -> None:
        if self._on_gpu:
            self._marks[-1][1].synchronize()
        for (name, start), (_, end) in zip(self._marks, self._marks[1:]):
            spent = start.elapsed_time(end) / 1000 if self._on_gpu else end - start
            self._seconds[name] = self._seconds.get(name, 0.0) + spent
        del self._marks[:-1]
