"""From models that block to an event loop that must not: threads, and server-sent events.

A `ChatModel` gives blocking iterators. Each is read in a thread of its own (as many as the engine
admits, so a shared pool could starve) and handed over to the loop. A client that leaves, in a
streamed or a plain request, and a server that ends, cancel the generation behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lmworks.inference.base import Completion, Delta, Usage, collect
from lmworks.serving.errors import as_api_error

Opener = Callable[[], Iterator[Delta]]
T = TypeVar("T")


class Generation:
    """The streams of one request's choices, as one asynchronous iterator of (index, delta)."""

    def __init__(self, openers: Sequence[Opener]) -> None:
        self._openers = list(openers)
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Queue[Exception | None] = asyncio.Queue()
        self._items: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue()
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

    def cancel(self, error: Exception | None = None) -> None:
        """End all streams; `error` is raised to who reads them. Call it from the loop."""
        with self._lock:
            self._cancelled.set()
            streams = list(self._streams)
        for stream in streams:
            _cancel(stream)
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
                yield index, item

    async def completions(self, saw: Callable[[Delta], None]) -> list[Completion]:
        """All of it, one completion per choice; `saw` is told each piece as it comes."""
        pieces: list[list[Delta]] = [[] for _ in self._openers]
        async for index, delta in self:
            saw(delta)
            pieces[index].append(delta)
        return [
            collect(iter(deltas), logprobs=any(d.logprobs for d in deltas)) for deltas in pieces
        ]

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


def total_usage(usages: Sequence[Usage]) -> Usage:
    """The sum over choices."""
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None as soon as the client has left (`work` is cancelled then)."""
    return await _first(asyncio.create_task(work), request.receive)


class EventStream(Response):
    """Server-sent events out of JSON objects; an error becomes the last event.

    Args:
        on_end: called once, however it ends.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[dict[str, Any]], on_end: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._on_end = events, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the events end or the client leaves."""
        try:
            await _first(asyncio.create_task(self._send_all(send)), receive)
        finally:
            self._on_end()

    async def _send_all(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        try:
            async for event in self._events:
                await _send_event(send, json.dumps(event, ensure_ascii=False))
            await _send_event(send, "[DONE]")
        except Exception as error:
            await _send_event(send, json.dumps(as_api_error(error).body()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_event(send: Send, data: str) -> None:
    body = f"data: {data}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _first(task: asyncio.Task[T], receive: Receive) -> T | None:
    leaving = asyncio.create_task(_until_left(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for other in (task, leaving):
            other.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
