"""From models that block to an event loop that must not.

A `ChatModel` gives blocking iterators. Each is opened in a thread of its own (as many as the engine
admits, so a shared pool could starve). One that can say when it is ready (`on_ready`, `ready`: the
engine's can) is read on the loop from then on, and thousands cost no thread; any other stays with
its thread. Either is at most `MAX_AHEAD` pieces ahead of whoever reads: a slow reader slows its own
answer, and nothing grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar

from lmworks.inference.base import Delta

T = TypeVar("T")
Opener = Callable[[], Iterator[Delta]]
MAX_AHEAD = 64  # pieces that a stream may be ahead of its reader


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
        self._polled: dict[int, _Polled] = {}
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
                if index in self._polled:
                    self._polled[index].taken()
                else:
                    self._room[index].release()
                yield index, item

    def _poll(self, index: int, stream: Iterator[Delta]) -> None:
        self._polled[index] = _Polled(self._loop, stream, functools.partial(self._take, index))
        self._opened.put_nowait(None)

    def _take(self, index: int, item: Delta | Exception | None) -> None:
        self._items.put_nowait((index, item))

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
        if hasattr(stream, "on_ready"):
            with contextlib.suppress(RuntimeError):  # as in `_post`
                self._loop.call_soon_threadsafe(self._poll, index, stream)
            return
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


class _Polled:
    """A stream that is read on the loop, when it says that there is something."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stream: Any,
        take: Callable[[Delta | Exception | None], None],
    ) -> None:
        self._loop, self._stream, self._take = loop, stream, take
        self._ahead = 0
        self._woken = self._ended = False
        stream.on_ready(self._wake)

    def taken(self) -> None:
        """The reader took a piece."""
        self._ahead -= 1
        if self._ahead == MAX_AHEAD // 2:
            self._read()

    def _wake(self) -> None:  # from any thread
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._read)

    def _read(self) -> None:
        self._woken = False  # before a look at the stream: what comes later wakes again
        while not self._ended and self._ahead < MAX_AHEAD and self._stream.ready():
            try:
                item: Delta | Exception | None = next(self._stream)
                self._ahead += 1
            except StopIteration:
                item, self._ended = None, True
            except Exception as error:
                self._take(error)
                item, self._ended = None, True
            self._take(item)


def _cancel(stream: Iterator[Delta]) -> None:
    # A stream without it (a remote one) is dropped by its thread at its next piece.
    if cancel := getattr(stream, "cancel", None):
        cancel()


async def in_thread(work: Callable[[], T]) -> T:
    """The result of what may block for long (the loading of a model), out of a thread of its own:
    a shared pool would be full of those who wait for the same."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="lmworks-model", daemon=True).start()
    return await future
