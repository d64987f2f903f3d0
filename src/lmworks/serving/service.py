"""What all endpoints share: the models, what runs on them, and the figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from lmworks.inference.base import ChatModel
from lmworks.serving.callers import Caller
from lmworks.serving.catalogue import FixedModels, Models, as_models
from lmworks.serving.errors import CLIENT_LEFT, ApiError, model_not_found
from lmworks.serving.generation import Generation, in_thread
from lmworks.serving.json_log import AnswerLog
from lmworks.serving.live_streams import GRACE_S, LiveStreams, parse_event_id
from lmworks.serving.metrics import Metrics, RequestWatch
from lmworks.serving.streaming import EventStream, unless_left
from lmworks.serving.tracing import Tracing
from lmworks.serving.turns import Running, Turn, Watch

if TYPE_CHECKING:
    from lmworks.serving.conversations.store import ConversationStore

MAX_BODY_BYTES = 8 << 20
_DRAIN_STEP_S = 0.05


class OtherAnswers(Protocol):
    """Answers that are made beside the requests, and end with the server as well."""

    @property
    def num_running(self) -> int: ...

    def cancel_all(self) -> None: ...


class Service:
    """The state behind an application; `app.state.service`. Its methods are for the event loop.

    Args:
        grace_s: how long a resumable stream waits for its reader to come back.
        tracing: makes spans; by default there are none.
        responses_path: the database of `/v1/responses`; by default it is in memory.
        conversations: where the chat page keeps them; None: in memory, until the end.
        encoder: a sentence encoder, with which the chat page recalls by meaning.
    """

    def __init__(
        self,
        models: Models | Mapping[str, ChatModel],
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        grace_s: float = GRACE_S,
        tracing: Tracing | None = None,
        responses_path: str | Path | None = None,
        conversations: ConversationStore | None = None,
        encoder: str = "",
    ) -> None:
        self.models, self.max_body_bytes = as_models(models), max_body_bytes
        self.metrics = Metrics(self.models)
        self.streams = LiveStreams(grace_s)
        self.tracing = tracing or Tracing()
        self.responses_path = responses_path
        self._closers: list[Callable[[], None]] = [self.tracing.close]
        self.started = int(time.time())
        self.draining = False
        self._running: set[Running] = set()
        self._others: list[OtherAnswers] = []
        self._conversations, self.encoder = conversations, encoder

    @property
    def conversations(self) -> ConversationStore:
        """Those of the chat page."""
        if self._conversations is None:
            from lmworks.serving.conversations.store import ConversationStore

            self._conversations = ConversationStore(None)
        return self._conversations

    def add_answers(self, answers: OtherAnswers) -> None:
        """Count, wait for and end these too."""
        self._others.append(answers)

    @property
    def num_running(self) -> int:
        """Answers being made."""
        return len(self._running) + sum(other.num_running for other in self._others)

    def cancel_all(self) -> None:
        """End every answer, with an error to those who still listen."""
        self.draining = True
        for running in list(self._running):
            running.cancel(_shutting_down())
        for other in self._others:
            other.cancel_all()

    def on_close(self, closer: Callable[[], None]) -> None:
        """Call `closer` when the server has ended."""
        self._closers.append(closer)

    def close(self) -> None:
        """The server has ended: close the models and all else."""
        for closer in self._closers:
            closer()
        self.models.close()

    async def drain(self, timeout_s: float) -> None:
        """Take no new requests, and return when all answers are finished or the time is over."""
        self.draining = True
        deadline = time.monotonic() + timeout_s
        while self.num_running and time.monotonic() < deadline:
            await asyncio.sleep(_DRAIN_STEP_S)

    def check_open(self) -> None:
        """Raises: ApiError (503) once the server takes no new requests."""
        if self.draining:
            raise _shutting_down()

    def check_name(self, name: str) -> None:
        """Raises: ApiError (404) naming the known ones."""
        if name not in self.models.names():
            raise model_not_found(name, self.models.names())

    async def model(self, name: str) -> ChatModel:
        """The model, loaded if need be. Raises: ApiError (404) naming the known ones."""
        try:
            if isinstance(self.models, FixedModels):  # nothing to wait for
                return self.models.get(name)
            return await in_thread(lambda: self.models.get(name))
        except KeyError:
            raise model_not_found(name, self.models.names()) from None

    async def start(self, turn: Turn, caller: Caller) -> Running:
        """Begin to answer. Raises: ApiError for what can't be answered."""
        self.check_open()
        model = await self.model(turn.model)
        openers = turn.openers(model, _options(model, caller))
        watches: list[Watch] = [
            RequestWatch(self.metrics.of(turn.model)),
            AnswerLog(turn.model, turn.traced()["gen_ai.operation.name"], caller),
            *self.tracing.answer(turn, caller),
        ]

        def ended() -> None:
            self._running.discard(running)

        running = Running(turn, Generation(openers), watches, ended)
        self._running.add(running)
        await running.open()
        return running

    async def generate(self, http: Request, turn: Turn) -> Response:
        """Run a checked request and answer it, streamed or whole; or go on with the stream that
        the client names by its last event."""
        if (last := http.headers.get("last-event-id")) is not None:
            return self.resume(*parse_event_id(last))
        running = await self.start(turn, Caller.of(http, turn))
        if turn.stream and turn.resumable:
            return self.resume(self.streams.add(running).id)
        if turn.stream:
            return EventStream(running.events(), running.end)
        try:
            answer = await unless_left(http, running.whole())
        finally:
            running.end()
        return Response(status_code=CLIENT_LEFT) if answer is None else JSONResponse(answer)

    def resume(self, stream_id: str, after: int = -1) -> EventStream:
        """The events of a kept stream after number `after`. Raises: ApiError (404, 410, 400)."""
        stream = self.streams.get(stream_id)
        stream.check(after)
        stream.attach()
        return EventStream(stream.read(after), stream.detach, {"X-Stream-Id": stream.id})


def _options(model: ChatModel, caller: Caller) -> dict[str, Any]:
    """Of what is known about the caller, what this kind of model can use."""
    known = getattr(model, "request_options", ())
    return {name: getattr(caller, name) for name in ("client", "priority") if name in known}


def _shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down")
