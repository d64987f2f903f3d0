"""The application: models by name in, an OpenAI-compatible API and a chat page out.

| path | |
|---|---|
| `GET /` | the chat page |
| `GET /v1/models`, `/v1/models/NAME` | the names |
| `POST /v1/chat/completions`, `/v1/completions` | answers, streamed on request |
| `GET /health`, `/metrics` | for those who watch it |

Bodies are read and checked here and not by the framework, so that every fault leaves in OpenAI's
shape and a body over the limit is refused before it is in memory. Left out: users and keys (it
serves one machine), tools, images, embeddings.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

import lmworks
from lmworks.inference.base import ChatModel, Usage
from lmworks.inference.sampling import InvalidParameter
from lmworks.inference.streams import PromptTooLong
from lmworks.serving.errors import (
    CLIENT_LEFT,
    ApiError,
    as_api_error,
    install_error_handlers,
    model_not_found,
)
from lmworks.serving.guard import HostGuard
from lmworks.serving.metrics import CONTENT_TYPE, Metrics, MetricsMiddleware, RequestWatch
from lmworks.serving.openai_types import (
    MAX_CHOICES,
    Answer,
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    parse,
)
from lmworks.serving.page import chat_page, page_headers
from lmworks.serving.streaming import (
    EventStream,
    Generation,
    Opener,
    total_usage,
    unless_left,
)

MAX_BODY_BYTES = 8 << 20


class Service:
    """The models, what runs on them, and the figures; `app.state.service`."""

    def __init__(self, models: Mapping[str, ChatModel], max_body_bytes: int) -> None:
        self.models, self.max_body_bytes = dict(models), max_body_bytes
        self.metrics = Metrics(self.models)
        self.started = int(time.time())
        self._running: set[Generation] = set()

    def cancel_all(self) -> None:
        """End every generation, with an error to those who still listen. Call it on the loop."""
        for generation in list(self._running):
            generation.cancel(ApiError(503, "the server is shutting down", code="shutting_down"))

    def model(self, name: str) -> ChatModel:
        """Raises: ApiError (404) naming the known ones."""
        if name not in self.models:
            raise model_not_found(name, self.models)
        return self.models[name]

    async def generate(self, http: Request, request: GenerationRequest) -> Response:
        """Run a checked request and answer it, streamed or whole."""
        openers = _openers(self.model(request.model), request)
        watch = RequestWatch(self.metrics.by_model[request.model])
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


def _openers(model: ChatModel, request: GenerationRequest) -> list[Opener]:
    repeats = range(request.n or 1)
    if isinstance(request, ChatCompletionRequest):
        messages = [message.plain() for message in request.messages]
        return [functools.partial(model.stream, messages, **request.sampling(i)) for i in repeats]
    assert isinstance(request, CompletionRequest)
    choices = [(prompt, i) for prompt in request.prompts for i in repeats]
    if not 1 <= len(choices) <= MAX_CHOICES:
        message = f"prompt: {len(choices)} choices are asked for, 1 to {MAX_CHOICES} can be"
        raise ApiError(400, message, param="prompt", code="invalid_value")
    return [
        functools.partial(model.stream_text, prompt, **request.sampling(i)) for prompt, i in choices
    ]


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
    usage = _counted(request, usages)
    return JSONResponse(Answer.to(request).whole(completions, usage))


async def _events(
    generation: Generation, request: GenerationRequest, watch: RequestWatch
) -> AsyncIterator[dict[str, Any]]:
    answer, begun, usages = Answer.to(request), set(), []
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


async def read_body(http: Request, limit: int) -> bytes:
    """The body. Raises: ApiError (413) for one over `limit` bytes, before it is in memory."""
    body = bytearray()
    too_large = ApiError(413, f"the body is over {limit} bytes", code="body_too_large")
    if int(http.headers.get("content-length") or 0) > limit:
        raise too_large
    async for chunk in http.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


async def read_json(http: Request, limit: int) -> Any:
    """The JSON of the body. Raises: ApiError (413, 400)."""
    body = await read_body(http, limit)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"the body is not JSON: {reason}", code="invalid_json") from None


def create_app(
    models: Mapping[str, ChatModel],
    *,
    allowed_hosts: Collection[str] | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """The ASGI application over `models`; the first one is the chat page's choice.

    Args:
        allowed_hosts: names that requests may address it by; None: any. See `guard`.
    """
    service = Service(models, max_body_bytes)
    app = FastAPI(title="lmworks", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    install_error_handlers(app)
    if allowed_hosts is not None:
        app.add_middleware(HostGuard, hosts=allowed_hosts)
    app.add_middleware(MetricsMiddleware, metrics=service.metrics)
    _add_generation_routes(app, service)
    _add_watching_routes(app, service)
    return app


def _add_generation_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(http: Request) -> Response:
        values = await read_json(http, service.max_body_bytes)
        return await service.generate(http, parse(ChatCompletionRequest, values))

    @app.post("/v1/completions")
    async def completions(http: Request) -> Response:
        values = await read_json(http, service.max_body_bytes)
        return await service.generate(http, parse(CompletionRequest, values))


def _add_watching_routes(app: FastAPI, service: Service) -> None:
    def entry(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": service.started, "owned_by": "lmworks"}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [entry(name) for name in service.models]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        service.model(name)
        return entry(name)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": lmworks.__version__, "models": list(service.models)}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(chat_page(), headers=page_headers(chat_page()))
