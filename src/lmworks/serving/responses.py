"""`/v1/responses`: the OpenAI Responses API, with answers that are kept and gone on from.

| | |
|---|---|
| `POST /v1/responses` | an answer; `previous_response_id` goes on with an earlier one |
| `GET /v1/responses/ID` | it again; with `stream=true` its events, after `starting_after` |
| `DELETE /v1/responses/ID`, `POST .../cancel` | |
| `GET /v1/responses/ID/input_items` | what it answered |

In the background (`background`) an answer goes on while nobody listens. Left out: tools that run
here (search, files, code), images, conversations as objects of their own.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response

from lmworks.inference.base import ChatModel
from lmworks.serving.bodies import read_json
from lmworks.serving.callers import Caller
from lmworks.serving.chat_completions import ChatCompletionRequest
from lmworks.serving.errors import ApiError
from lmworks.serving.generation import Opener
from lmworks.serving.live_streams import LiveStream
from lmworks.serving.openai_types import parse
from lmworks.serving.openapi import takes
from lmworks.serving.response_store import ResponseStore
from lmworks.serving.responses_answers import ResponsesReply
from lmworks.serving.responses_types import ResponsesRequest
from lmworks.serving.service import Service

_OWN_NAMES = {"max_tokens": "max_output_tokens", "logprobs": "top_logprobs", "messages": "input"}


class ResponsesTurn:
    """One request in its conversation; see `turns.Turn`."""

    resumable = False

    def __init__(
        self, request: ResponsesRequest, chat: ChatCompletionRequest, reply: ResponsesReply
    ) -> None:
        self._chat, self._reply = chat, reply
        self.model, self.stream = request.model, request.stream
        self.user, self.priority = request.user, request.priority
        self.service_tier = request.service_tier

    def openers(self, model: ChatModel, options: Mapping[str, Any]) -> list[Opener]:
        """See `turns.Turn`."""
        return self._chat.openers(model, options)

    def reply(self) -> ResponsesReply:
        """See `turns.Turn`."""
        return self._reply

    def own_name(self, param: str) -> str:
        """See `turns.Turn`."""
        return _OWN_NAMES.get(param, param)

    def traced(self) -> Mapping[str, Any]:
        """See `turns.Turn`."""
        return self._chat.traced()


class Responses:
    """The answers that are kept, and those of them that are being made in the background."""

    def __init__(self, service: Service, store: ResponseStore) -> None:
        self._service, self._store = service, store
        self._live: dict[str, LiveStream] = {}

    async def create(self, http: Request, request: ResponsesRequest) -> Response:
        """Answer a request."""
        before: list[dict[str, Any]] = []
        if request.previous_response_id is not None:
            try:
                before = self._store.conversation(request.previous_response_id)
            except ApiError as error:
                raise error.about("previous_response_id") from None
        chat = request.as_chat(before)
        keep = functools.partial(self._keep, items=request.items)
        if request.store is False:
            keep = functools.partial(lambda response: None)
        reply = ResponsesReply(request, f"resp_{uuid.uuid4().hex}", keep)
        turn = ResponsesTurn(request, chat, reply)
        if request.background:
            return await self._in_background(http, turn, reply, keep)
        return await self._service.generate(http, turn)

    def live(self, response_id: str) -> LiveStream | None:
        """The stream behind an answer in the background, while it is kept."""
        for name in [name for name, stream in self._live.items() if stream.gone]:
            del self._live[name]
        return self._live.get(response_id)

    def events(self, response_id: str, after: int) -> Response:
        """Its events after number `after`. Raises: ApiError (404, 410, 400)."""
        stream = self.live(response_id)
        if stream is None:
            self._store.get(response_id)
            message = "the events of this response are gone, or it was not made in the background"
            raise ApiError(410, message, code="events_gone")
        return self._service.resume(stream.id, after)

    async def cancel(self, response_id: str) -> dict[str, Any]:
        """End an answer that is being made. Raises: ApiError (404, 400)."""
        response = self._store.get(response_id)
        stream = self.live(response_id)
        if stream is None or stream.ended:
            message = "only a response that is being made in the background can be cancelled"
            raise ApiError(400, message, code="not_in_progress")
        stream.running.cancel()
        await stream.finished()
        response = self._store.get(response_id)
        return response

    async def _in_background(
        self, http: Request, turn: ResponsesTurn, reply: ResponsesReply, keep: Any
    ) -> Response:
        running = await self._service.start(turn, Caller.of(http, turn))
        response = reply.response("in_progress")
        keep(response)
        stream = self._service.streams.add(running, patient=True)
        self.live("")  # those that are gone are forgotten
        self._live[reply.id] = stream
        return self._service.resume(stream.id) if turn.stream else JSONResponse(response)

    def _keep(self, response: dict[str, Any], items: list[dict[str, Any]]) -> None:
        self._store.save(response, items)


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""
    store = ResponseStore(service.responses_path)
    service.on_close(store.close)
    responses = Responses(service, store)

    @app.post("/v1/responses", **takes(app, ResponsesRequest, streams=True))
    async def create(http: Request) -> Response:
        request = parse(ResponsesRequest, await read_json(http, service.max_body_bytes))
        return await responses.create(http, request)

    @app.get("/v1/responses/{response_id}")
    async def get(
        response_id: str,
        stream: bool = False,
        starting_after: Annotated[int, Query(ge=-1, le=999_999_999)] = -1,
    ) -> Response:
        if stream:
            return responses.events(response_id, starting_after)
        return JSONResponse(await asyncio.to_thread(store.get, response_id))

    @app.delete("/v1/responses/{response_id}")
    async def delete(response_id: str) -> dict[str, Any]:
        if (stream := responses.live(response_id)) is not None:
            stream.drop()
        await asyncio.to_thread(store.delete, response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @app.post("/v1/responses/{response_id}/cancel")
    async def cancel(response_id: str) -> dict[str, Any]:
        return await responses.cancel(response_id)

    @app.get("/v1/responses/{response_id}/input_items")
    async def input_items(response_id: str) -> dict[str, Any]:
        items = await asyncio.to_thread(store.items, response_id)
        return {"object": "list", "data": items, "has_more": False}
