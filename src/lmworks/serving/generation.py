"""From models that block to an event loop that must not: one thread per stream.

A `ChatModel` gives blocking iterators. Each is read in a thread of its own (as many as the engine
admits, so a shared pool could starve) and handed over to the loop, at most `MAX_AHEAD` pieces ahead
of whoever reads: a slow reader slows its own thread, and nothing grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from lmworks.inference.base import Delta

Opener = Callable[[], Iterator[Delta]]
MAX_AHEAD = 64  # pieces that a thread may be ahead of the reader


class Generation:
    """The streams of one request's choices, as one asynchronous iterator of (index, delta)."""

    def __init__(self, openers: Sequence[Opener]) -> None:
        self._openers = list(openers)
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Queue[Exception | None] = asyncio.Queue()
        self._items: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue()
        self._room = [threading.Semaphore(MAX_AHEAD) for _ in self._openers]
        self._cancelled = threading.Event()
        self._streams: list[Iterator[Delta]] = []
        self._lock = threading.Lock()

    async def open(self) -> None:
        """Start all streams. Raises: what the first bad one raised; the others are cancelled."""
        for index, opener in enumerate(self._openers):
            name = f"lmworks-stream-{index}"
            threading.Thread(
                target=self._read, args=(index, opener), name=name, daemon=True
            ).start()
        try:
            for _ in self._openers:
                if error := await self._opened.get():
                    raise error
        except BaseException:
            self.cancel()
            raise

    @property
    def num_streams(self) -> int:
        """How many choices there are."""
        return len(self._openers)

    @property
    def prompt_tokens(self) -> int:
        """What the streams say they read, where they say so before their end; else 0."""
        return max((getattr(stream, "prompt_tokens", 0) for stream in self._streams), default=0)

    def cancel(self, error: Exception | None = None) -> None:
        """End all streams; `error` is raised to who reads them. Call it from the loop."""
        with self._lock:
            self._cancelled.set()
            streams = list(self._streams)
        for stream in streams:
            _cancel(stream)
        for room in self._room:  # a thread that waits for room must see it is over
            room.release()
        if error is not None:
            self._items.put_nowait((0, error))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        running = len(self._openers)
        while running:
            index, item = await self._items.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                self._room[index].release()
                yield index, item

    # --- from here on: the thread of one stream ---

    def _read(self, index: int, opener: Opener) -> None:
        try:
            stream = opener()
        except Exception as error:
            self._post(self._opened, error)
            return
        with self._lock:
            self._streams.append(stream)
            if self._cancelled.is_set():
                _cancel(stream)
        self._post(self._opened, None)
        try:
            for delta in stream:
                self._room[index].acquire()
                if self._cancelled.is_set():
                    break
                self._post(self._items, (index, delta))
        except Exception as error:
            self._post(self._items, (index, error))
        finally:
            if close := getattr(stream, "close", None):
                close()
            self._post(self._items, (index, None))

    def _post(self, queue: asyncio.Queue[Any], item: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it every reader
            self._loop.call_soon_threadsafe(queue.put_nowait, item)


def _cancel(stream: Iterator[Delta]) -> None:
    # A stream without it (a remote one) is dropped by its thread at its next piece.
    if cancel := getattr(stream, "cancel", None):
        cancel()
