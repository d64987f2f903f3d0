"""Server-sent events, and clients that leave in the middle of them.

A client that leaves, in a streamed or a plain request, ends the work behind it; so does one that
takes nothing for `STALL_S`. While nothing is to be said (a long prompt is being read), a comment
goes out now and then, so that no proxy between takes the connection for dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, NamedTuple, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lmworks.serving.errors import as_api_error

STALL_S = 60.0  # how long a client may take nothing
SILENCE_S = 15.0  # after which a comment is sent
T = TypeVar("T")


class Event(NamedTuple):
    """One server-sent event: its data (text as it is, else JSON), and where it has them, its name
    and the number that a reader who lost the connection tells."""

    data: Mapping[str, Any] | str
    name: str = ""
    number: str = ""

    def text(self) -> str:
        """The data as it is sent."""
        data = self.data
        return data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)

    def encode(self) -> bytes:
        """The whole event as it is sent."""
        name = f"event: {self.name}\n" if self.name else ""
        number = f"id: {self.number}\n" if self.number else ""
        return f"{name}{number}data: {self.text()}\n\n".encode()


DONE = Event("[DONE]")


class _Stalled(Exception):
    """The client took nothing for too long."""


class EventStream(Response):
    """Server-sent events; an error becomes the last one.

    Args:
        on_end: called once, however it ends.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        on_end: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        fixed = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers={**fixed, **(headers or {})})
        del self.headers["content-length"]
        self._events, self._on_end = events, on_end
        self._sent = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the events end or the client leaves."""
        try:
            with contextlib.suppress(_Stalled):
                await _first(asyncio.create_task(self._send_all(send)), receive)
        finally:
            self._on_end()

    async def _send_all(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        silence = asyncio.create_task(self._break_silence(send))
        try:
            async with contextlib.aclosing(self._events) as events:
                async for event in events:
                    await self._send(send, event)
                    # With more to send at hand nothing above waits: others have their turn, and
                    # that the client left is heard.
                    await asyncio.sleep(0)
        except _Stalled:
            raise
        except Exception as error:
            await self._send(send, Event(as_api_error(error).body()))
        finally:
            silence.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, event: Event) -> None:
        self._sent = True
        try:
            async with asyncio.timeout(STALL_S):
                body = event.encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except TimeoutError:
            raise _Stalled from None

    async def _break_silence(self, send: Send) -> None:
        while True:
            self._sent = False
            await asyncio.sleep(SILENCE_S)
            if not self._sent:
                await send({"type": "http.response.body", "body": b": \n\n", "more_body": True})


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None as soon as the client has left (`work` is cancelled then)."""
    return await _first(asyncio.create_task(work), request.receive)


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
