"""What all endpoints share: the models, what runs on them, and the figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from lmworks.inference.base import ChatModel, Usage
from lmworks.inference.sampling import InvalidParameter
from lmworks.inference.streams import PromptTooLong
from lmworks.serving.catalogue import Models, as_models
from lmworks.serving.errors import CLIENT_LEFT, ApiError, as_api_error, model_not_found
from lmworks.serving.metrics import Metrics, RequestWatch
from lmworks.serving.openai_types import GenerationRequest
from lmworks.serving.streaming import EventStream, Generation, total_usage, unless_left

MAX_BODY_BYTES = 8 << 20


class Service:
    """The state behind an application; `app.state.service`."""

    def __init__(
        self,
        models: Models | Mapping[str, ChatModel],
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self.models, self.max_body_bytes = as_models(models), max_body_bytes
        self.metrics = Metrics(self.models)
        self.started = int(time.time())
        self._running: set[Generation] = set()

    def cancel_all(self) -> None:
        """End every generation, with an error to those who still listen. Call it on the loop."""
        for generation in list(self._running):
            generation.cancel(ApiError(503, "the server is shutting down", code="shutting_down"))

    def check_name(self, name: str) -> None:
        """Raises: ApiError (404) naming the known ones."""
        if name not in self.models.names():
            raise model_not_found(name, self.models.names())

    async def model(self, name: str) -> ChatModel:
        """The model, loaded if need be. Raises: ApiError (404) naming the known ones."""
        try:
            return await asyncio.to_thread(self.models.get, name)
        except KeyError:
            raise model_not_found(name, self.models.names()) from None

    async def generate(self, http: Request, request: GenerationRequest) -> Response:
        """Run a checked request and answer it, streamed or whole."""
        openers = request.openers(await self.model(request.model))
        watch = RequestWatch(self.metrics.of(request.model))
        generation = Generation(openers)
        self._running.add(generation)

        def end() -> None:
            generation.cancel()
            self._running.discard(generation)
            watch.end()

        streaming = False
        try:
            await generation.open()
            if request.stream:
                streaming = True
                return EventStream(_events(generation, request, watch), end)
            return await _whole(http, generation, request, watch)
        except PromptTooLong as error:
            raise as_api_error(error).about(request.prompt_param) from None
        except InvalidParameter as error:
            raise as_api_error(error).about(request.own_name(error.param)) from None
        except Exception as error:  # left to the framework it would cost the client's connection
            raise as_api_error(error) from error
        finally:
            if not streaming:
                end()


async def _whole(
    http: Request, generation: Generation, request: GenerationRequest, watch: RequestWatch
) -> Response:
    completions = await unless_left(http, generation.completions(watch.saw))
    if completions is None:
        return Response(status_code=CLIENT_LEFT)
    usages = [
        Usage(prompt_tokens=c.prompt_tokens, completion_tokens=c.completion_tokens)
        for c in completions
    ]
    return JSONResponse(request.answer().whole(completions, _counted(request, usages)))


async def _events(
    generation: Generation, request: GenerationRequest, watch: RequestWatch
) -> AsyncIterator[dict[str, Any]]:
    answer, begun, usages = request.answer(), set(), []
    later = {"usage": None} if request.include_usage else {}
    async for index, delta in generation:
        watch.saw(delta)
        if delta.usage:
            usages.append(delta.usage)
        first = index not in begun
        begun.add(index)
        if first or delta.text or delta.finish_reason or delta.logprobs:
            yield answer.piece(index, delta, first=first) | later
    if request.include_usage:
        yield answer.usage_piece(_counted(request, usages))


def _counted(request: GenerationRequest, usages: list[Usage]) -> Usage:
    """The sum over choices; a prompt that several choices share is counted once, as there."""
    total = total_usage(usages)
    prompt_tokens = total.prompt_tokens // (request.n or 1)
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=total.completion_tokens)
