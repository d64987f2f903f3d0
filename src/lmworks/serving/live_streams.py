"""Streams that outlive a connection.

The answer is made into a bounded store of numbered events. A client that lost the connection asks
for the events after the last one it has; while nobody listens, the answer goes on for a time of
grace, and is cancelled then. After its end it is kept for the same time. A reader that is slower
than the model, or away, makes the answer wait once the store is full: no event is lost and nothing
grows. (The field's way with SSE: `id:` in each event, `Last-Event-ID` in the request that resumes;
WHATWG HTML, "Server-sent events".)
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator

from lmworks.serving.errors import ApiError
from lmworks.serving.streaming import Event
from lmworks.serving.turns import Running

GRACE_S = 30.0
MAX_STREAMS = 500
MAX_STREAM_BYTES = 1 << 19


class LiveStream:
    """One answer's events, by number, from 0.

    Args:
        patient: whether it waits for readers without end, and only afterwards for `grace_s`.
    """

    def __init__(
        self,
        running: Running,
        grace_s: float,
        *,
        patient: bool = False,
        max_bytes: int = MAX_STREAM_BYTES,
    ) -> None:
        self.id = f"stream_{secrets.token_urlsafe(18)}"
        self.running = running
        self.ended = False
        self._grace_s, self._max_bytes, self._patient = grace_s, max_bytes, patient
        self._events: deque[Event] = deque()
        self._bytes = 0
        self._first = 0  # the number of the oldest event kept
        self._delivered = 0  # how many somebody has got
        self._readers = 0
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task = asyncio.create_task(self._fill())
        self.gone = False
        self._expect_reader()

    def check(self, after: int) -> None:
        """Raises: ApiError (410) where the events after number `after` are no longer here, (400)
        where there never was such a number."""
        if after + 1 < self._first:
            message = f"the events up to number {self._first - 1} are gone: start anew"
            raise ApiError(410, message, code="events_gone")
        if after >= self._first + len(self._events):
            raise ApiError(
                400, f"there is no event {after} yet", param="after", code="invalid_value"
            )

    async def read(self, after: int = -1) -> AsyncGenerator[Event, None]:
        """The events from number `after` + 1 to the end, as they come."""
        number = after + 1
        while True:
            if number < self._first:  # a second reader was faster, and the store is full
                raise ApiError(410, "the events were read elsewhere", code="events_gone")
            while number < self._first + len(self._events):
                event = self._events[number - self._first]
                yield event._replace(number=f"{self.id}:{number}")
                number += 1
                if number > self._delivered:
                    self._delivered = number
                    self._note()
            if self.ended:
                return
            await self._change()

    @property
    def listened(self) -> bool:
        """Whether somebody listens."""
        return self._readers > 0

    def attach(self) -> None:
        """Somebody listens."""
        self._readers += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def detach(self) -> None:
        """They no longer do; without others, the time of grace begins."""
        self._readers -= 1
        self._expect_reader()

    def _expect_reader(self) -> None:
        waits = self._patient and not self.ended
        if not (self._readers or self.gone or waits or self._timer):
            self._timer = self._loop.call_later(self._grace_s, self.drop)

    async def finished(self) -> None:
        """Return when there are no more events to come."""
        while not self.ended:
            await self._change()

    def drop(self) -> None:
        """End it, wherever it is, and forget it. Call it on the loop."""
        self.gone = True
        if self._timer is not None:
            self._timer.cancel()
        self._task.cancel()
        if not self.ended:
            self.ended = True
            self.running.end()
        self._note()

    async def _fill(self) -> None:
        try:
            async for event in self.running.events():
                event = event._replace(data=event.text())  # an object takes several times that
                size = len(event.data)
                while self._bytes + size > self._max_bytes and self._events:
                    if self._first < self._delivered or (self._patient and not self._readers):
                        self._bytes -= len(self._events.popleft().data)
                        self._first += 1
                    else:
                        await self._change()
                self._events.append(event)
                self._bytes += size
                self._note()
        finally:
            self.ended = True
            self.running.end()
            self._expect_reader()
            self._note()

    def _note(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        await self._changed.wait()


class LiveStreams:
    """The streams that can be picked up, by id."""

    def __init__(self, grace_s: float = GRACE_S, max_streams: int = MAX_STREAMS) -> None:
        self.grace_s, self.max_streams = grace_s, max_streams
        self._streams: dict[str, LiveStream] = {}

    def __len__(self) -> int:
        self._sweep()
        return len(self._streams)

    def add(self, running: Running, *, patient: bool = False) -> LiveStream:
        """Keep a turn's events; see `LiveStream`.

        Raises: ApiError (429) where too many are kept already.
        """
        self._sweep()
        if len(self._streams) >= self.max_streams:
            ended = next((s for s in self._streams.values() if s.ended and not s.listened), None)
            if ended is None:
                running.end()
                message = f"{len(self._streams)} resumable streams are open already"
                raise ApiError(429, message, code="too_many_streams")
            ended.drop()
        stream = LiveStream(running, self.grace_s, patient=patient)
        self._streams[stream.id] = stream
        return stream

    def get(self, stream_id: str) -> LiveStream:
        """Raises: ApiError (404)."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.gone:
            message = "there is no such stream: it ended too long ago, or never was"
            raise ApiError(404, message, code="stream_not_found")
        return stream

    def _sweep(self) -> None:
        for name in [name for name, stream in self._streams.items() if stream.gone]:
            del self._streams[name]


def parse_event_id(text: str) -> tuple[str, int]:
    """The stream and the number in a `Last-Event-ID`. Raises: ApiError (400)."""
    name, _, number = text.rpartition(":")
    if not name or not number.isascii() or not number.isdigit() or len(number) > 9:
        raise ApiError(400, "Last-Event-ID: must be the id of an event of a stream of ours")
    return name, int(number)
