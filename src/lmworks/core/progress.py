"""Progress of long work: a bar on a terminal, a line now and then in a log, nothing when quiet.

    with progress.track("reading", total=len(paths)) as bar:
        for path in paths:
            ...
            bar.advance()

All of it goes to standard error, so that standard output can be piped.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

Mode = Literal["auto", "bar", "lines", "quiet"]
_LINE_EVERY_S = 15.0
_mode: Mode = "auto"
_listener: contextvars.ContextVar[Callable[[str], None] | None]
_listener = contextvars.ContextVar("listener", default=None)


def set_mode(mode: Mode) -> None:
    """`auto`: a bar on a terminal and nothing elsewhere (a library should not chatter)."""
    global _mode
    _mode = mode


def say(message: str) -> None:
    """One line for the person who watches, unless quiet."""
    if listener := _listener.get():
        listener(message.strip())
    if shown():
        _console().print(message, highlight=False, soft_wrap=True)


def shown() -> bool:
    """Whether what is said reaches a person."""
    return _mode != "quiet" and (_mode != "auto" or sys.stderr.isatty())


@contextlib.contextmanager
def heard_by(listener: Callable[[str], None]) -> Iterator[None]:
    """Let `listener` have every line that is said in this thread, for a page that shows it."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def duration(seconds: float) -> str:
    """`75` as `1m15s`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


class Bar:
    """What `track` yields. `advance(n, loss=2.1)` moves it and shows the figures beside it."""

    def __init__(self, label: str, total: float | None) -> None:
        self.label, self.total, self.done = label, total, 0.0
        self.figures: dict[str, Any] = {}
        self._started = self._said = time.monotonic()

    def advance(self, steps: float = 1, **figures: Any) -> None:
        self.done += steps
        self.figures.update(figures)
        self._show()

    def _show(self) -> None:
        """A quiet bar shows nothing."""

    def text(self) -> str:
        figures = " ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.figures.items()
        )
        return f"{self.label}  {figures}" if figures else self.label


class _LineBar(Bar):
    def _show(self) -> None:
        now = time.monotonic()
        if now - self._said < _LINE_EVERY_S or not self.done:
            return
        self._said = now
        share = f"{self.done / self.total:4.0%} " if self.total else f"{self.done:.0f} "
        left = ""
        if self.total:
            rest = (now - self._started) / self.done * (self.total - self.done)
            left = f"  {duration(rest)} left"
        _console().print(f"  {share}{self.text()}{left}", highlight=False, soft_wrap=True)


class _RichBar(Bar):
    def __init__(self, label: str, total: float | None, display: Any) -> None:
        super().__init__(label, total)
        self._display = display
        self._task = display.add_task(label, total=total)

    def _show(self) -> None:
        self._display.update(self._task, completed=self.done, description=self.text())


@contextlib.contextmanager
def track(label: str, total: float | None = None) -> Iterator[Bar]:
    """Show that `label` is going on; `total` in the steps that `advance` counts, if known."""
    mode = _mode
    if mode == "auto":
        mode = "bar" if sys.stderr.isatty() else "quiet"
    if mode == "quiet":
        yield Bar(label, total)
    elif mode == "lines":
        yield _LineBar(label, total)
    else:
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=_console(), transient=True) as display:
            yield _RichBar(label, total, display)


def _console() -> Any:
    # Made anew each time: tests and notebooks swap sys.stderr.
    from rich.console import Console

    return Console(stderr=True)
