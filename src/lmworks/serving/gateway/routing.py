"""Which back end answers, and which next when that one fails.

An attempt is over when the answer is safe: for a whole answer when all of it is here and right, for
a stream when the first event that says something is. Until then nothing was sent to the client, so
another attempt costs it nothing but time; after that a stream can't be begun anew, and is not.

Every route that is up is tried once without waiting, then those of the fallback models; only then
come pauses, each of a random length up to a bound that doubles ("full jitter").
Source: Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from lmworks.serving.errors import ApiError
from lmworks.serving.gateway.backends import Backend
from lmworks.serving.gateway.config import ModelConfig, RetryConfig, RouteConfig
from lmworks.serving.gateway.dialects import EventTranslator
from lmworks.serving.gateway.relay import EventSplitter, begins_answer
from lmworks.serving.gateway.upstream import Response, UpstreamFailure, refused

MAX_ANSWER_BYTES = 64 << 20
# What reading an answer of another form than expected can raise.
_NO_ANSWER = (ValueError, RecursionError, KeyError, TypeError, AttributeError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """What is asked, for whichever route answers.

    Attributes:
        path: below `/v1`, with the slash.
        client: the key's id.
        body: without `model`.
        redact: applied to the body for back ends that want it.
        check: called with a whole answer; raises ValueError for one that another try may mend.
    """

    path: str
    client: str
    model: str
    body: Mapping[str, Any]
    stream: bool
    redact: Callable[[Any], Any]
    check: Callable[[Any], None] | None = None


class Answer:
    """A safe answer. Whole: `body` and `value`; streamed: `events`. Close it."""

    def __init__(
        self, backend: Backend, route: RouteConfig, model: str, response: Response
    ) -> None:
        self.backend, self.route, self.model = backend, route, model
        self.tries = 0
        self.body, self.value = b"", None
        self._response = response
        self._begun: list[bytes] = []
        self._splitter = EventSplitter()
        self._translator: EventTranslator | None = None
        self._pieces: AsyncIterator[bytes] = response.pieces()
        self._closed = False

    async def read_whole(self, check: Callable[[Any], None] | None) -> None:
        """Raises: UpstreamFailure for an answer that is cut, no JSON object, or not as asked."""
        name = self.backend.name
        self.body = await self._response.read(MAX_ANSWER_BYTES)
        try:
            value = json.loads(self.body)
            if not isinstance(value, dict) or value.get("error"):
                raise ValueError("no object, or an error in it")
            self.value = self.backend.dialect.whole(value)
            if self.value is not value:
                self.body = json.dumps(self.value, ensure_ascii=False).encode()
        except _NO_ANSWER as error:
            raise UpstreamFailure(name, "body", f"an answer that is none: {error}") from error
        if check:
            try:
                check(self.value)
            except ValueError as error:
                raise UpstreamFailure(name, "schema", str(error)) from error

    async def begin(self) -> None:
        """Wait for the first event that says something. Raises: UpstreamFailure."""
        self._translator = self.backend.dialect.translator()
        try:
            async for events in self._events():
                self._begun += events
                if any(begins_answer(event) for event in events):
                    self._response.wait_between_pieces(self.backend.config.idle_s)
                    return
        except _NO_ANSWER as error:
            raise UpstreamFailure(self.backend.name, "stream", str(error)[:200]) from error
        raise UpstreamFailure(self.backend.name, "stream", "ended a stream before it said anything")

    async def events(self) -> AsyncIterator[list[bytes]]:
        """Whole events, as they come. Raises: UpstreamFailure when it is cut off."""
        yield self._begun
        try:
            async for events in self._events():
                yield events
        except _NO_ANSWER as error:
            raise UpstreamFailure(self.backend.name, "stream", str(error)[:200]) from error
        if self._splitter.rest.strip():
            raise UpstreamFailure(self.backend.name, "stream", "ended in the middle of an event")

    async def _events(self) -> AsyncIterator[list[bytes]]:
        async for piece in self._pieces:
            events = self._splitter.feed(piece)
            if self._translator:
                events = [made for event in events for made in self._translator.feed(event)]
            if events:
                yield events

    async def close(self) -> None:
        """Free the connection; in the middle of a stream that tells the back end to stop."""
        if not self._closed:
            self._closed = True
            self.backend.end()
            await self._response.close()


class Router:
    """Finds an answer for a call among the routes of its model."""

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        backends: Mapping[str, Backend],
        retries: RetryConfig,
    ) -> None:
        self._models, self._backends, self._retries = models, backends, retries

    async def answer(self, call: Call) -> Answer:
        """The first safe answer. Raises: ApiError that says why there is none."""
        failures: list[UpstreamFailure] = []
        running: set[asyncio.Task[Answer]] = set()
        tries = 0
        try:
            for pause_s, model, route in self._plan(call.model):
                if pause_s:
                    await asyncio.sleep(pause_s)
                if not self._backends[route.backend].may_try:
                    continue
                tries += 1
                running.add(asyncio.create_task(self._attempt(call, model, route)))
                hedge_s = self._retries.hedge_s or None
                if answer := await _first(running, hedge_s, failures):
                    answer.tries = tries
                    return answer
            while running:
                if answer := await _first(running, None, failures):
                    answer.tries = tries
                    return answer
        finally:
            await _drop(running)
        raise self._no_answer(call, failures)

    def _plan(self, model: str) -> Iterator[tuple[float, str, RouteConfig]]:
        """(pause before, model, route), lazily: each round looks at who is up by then."""
        names = [model, *self._models[model].fallbacks]
        for turn in range(self._retries.rounds + 1):
            pause_s = 0.0
            if turn:
                most_s = min(self._retries.max_s, self._retries.base_s * 2 ** (turn - 1))
                pause_s = random.uniform(0, most_s)
            for name in names:
                config = self._models[name]
                for route in self._ordered(config):
                    yield pause_s, name, route
                    pause_s = 0.0
            if turn and pause_s:  # nobody was up: the pause is still to be made
                yield pause_s, model, self._models[model].routes[0]

    def _ordered(self, config: ModelConfig) -> list[RouteConfig]:
        routes = [r for r in config.routes if self._backends[r.backend].available]
        if not routes:  # the last check is seconds old: better to try than to give up
            routes = [r for r in config.routes if self._backends[r.backend].may_try]
        if config.strategy == "order":
            return routes
        if config.strategy == "latency":
            random.shuffle(routes)  # so that equals share
            return sorted(routes, key=lambda r: self._backends[r.backend].expected_s() / r.weight)
        return weighted_order(routes)

    async def _attempt(self, call: Call, model: str, route: RouteConfig) -> Answer:
        backend = self._backends[route.backend]
        config, started_s = backend.config, time.monotonic()
        backend.begin()
        answer: Answer | None = None
        try:
            body = {**call.body, "model": route.model}
            if config.redact:
                body = call.redact(body)
            path, asked = _asked(backend, call.path, body)
            data = json.dumps(asked, ensure_ascii=False).encode()
            async with asyncio.timeout(None if call.stream else config.answer_s):
                wait_s = config.first_byte_s if call.stream else config.answer_s
                client = call.client if config.tell_client else ""
                response = await backend.upstream.post(path, data, wait_s, client)
                answer = Answer(backend, route, model, response)
                if response.status != 200:
                    raise await refused(backend.name, response)
                if call.stream:
                    async with asyncio.timeout(config.first_byte_s):
                        await answer.begin()
                else:
                    await answer.read_whole(call.check)
            backend.answered(time.monotonic() - started_s)
            return answer
        except BaseException as error:
            if isinstance(error, TimeoutError):
                error = UpstreamFailure(backend.name, "timeout", "did not answer in time")
            if isinstance(error, UpstreamFailure):
                backend.failed(error)
            if answer:
                await answer.close()
            else:
                backend.end()
            raise error from None

    def _no_answer(self, call: Call, failures: Sequence[UpstreamFailure]) -> ApiError:
        if not failures:
            message = f"no back end of {call.model!r} is up: try again in a few seconds"
            return ApiError(503, message, code="no_backend")
        told = "; ".join(dict.fromkeys(str(failure) for failure in failures[-4:]))
        kinds = {failure.kind for failure in failures}
        if kinds == {"unsupported"} and (error := failures[0].told):
            return error
        if kinds == {"schema"}:
            return ApiError(502, f"no answer was as asked for: {told}", code="schema_violation")
        if all(failure.status == 429 for failure in failures):
            return ApiError(429, f"every back end of {call.model!r} is busy", code="backends_busy")
        status = 504 if kinds == {"timeout"} else 502
        message = f"no back end of {call.model!r} answered: {told}"
        return ApiError(status, message, code="upstream_error")


def _asked(backend: Backend, path: str, body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Path and body in the back end's own words."""
    try:
        return backend.dialect.ask(path, body)
    except ApiError as error:
        told = error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        message = f"the request can't be read: {type(error).__name__} {str(error)[:80]}"
        told = ApiError(400, message, code="invalid_value")
    failure = UpstreamFailure(backend.name, "unsupported", told.message)
    failure.told = told
    raise failure


async def _first(
    running: set[asyncio.Task[Answer]], wait_s: float | None, failures: list[UpstreamFailure]
) -> Answer | None:
    """An answer, or None when all have failed or `wait_s` is over.

    Raises: RefusedByBackend when the request itself is bad, wherever it is sent.
    """
    while running:
        done, _ = await asyncio.wait(running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return None
        for task in done:
            if task.exception() is None:
                running.discard(task)
                return task.result()
        for task in done:
            running.discard(task)
            error = task.exception()
            if not isinstance(error, UpstreamFailure):
                raise error or RuntimeError("a task without an end")
            failures.append(error)
            if error.refusal is not None:
                raise RefusedByBackend(error)
    return None


async def _drop(running: set[asyncio.Task[Answer]]) -> None:
    """End attempts that are not needed, and close what they have got."""
    for task in running:
        task.cancel()
    for result in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(result, Answer):
            await result.close()


class RefusedByBackend(ApiError):
    """A back end says that the request is bad: its own words and status go to the client."""

    def __init__(self, failure: UpstreamFailure) -> None:
        error: Any = None
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            error = json.loads(failure.refusal or b"").get("error")
        if not isinstance(error, Mapping):
            error = {"message": str(error or f"the model's server refused it: {failure.reason}")}
        message, code, param = error.get("message"), error.get("code"), error.get("param")
        super().__init__(
            failure.status,
            str(message or failure.reason)[:2000],
            param=param if isinstance(param, str) else None,
            code=code if isinstance(code, str) else None,
        )
        self.backend = failure.backend


def weighted_order(routes: Sequence[RouteConfig]) -> list[RouteConfig]:
    """A random order in which the first is drawn by weight, then the second of the rest.

    Source: Efraimidis & Spirakis 2006, Weighted random sampling with a reservoir.
    """
    return sorted(routes, key=lambda route: random.random() ** (1 / route.weight), reverse=True)
