"""`POST /v1/messages`, `/v1/messages/count_tokens`: the Anthropic Messages API.

A request becomes the chat request that it means; the answer comes in blocks, of text or of calls.
Left out: images, documents, thinking, server tools, and going on with an unfinished answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from lmworks.core.errors import UserError
from lmworks.serving.anthropic_types import CountRequest, MessagesRequest
from lmworks.serving.bodies import read_json
from lmworks.serving.openai_types import parse
from lmworks.serving.openapi import takes
from lmworks.serving.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    @app.post("/v1/messages", **takes(app, MessagesRequest, streams=True))
    async def messages(http: Request) -> Response:
        turn = parse(MessagesRequest, await read_json(http, service.max_body_bytes))
        return await service.generate(http, turn)

    @app.post("/v1/messages/count_tokens", **takes(app, CountRequest))
    async def count_tokens(http: Request) -> dict[str, Any]:
        request = parse(CountRequest, await read_json(http, service.max_body_bytes))
        chat = request.as_chat()
        model = await service.model(request.model)
        count = getattr(model, "count_tokens", None)
        if count is None:
            raise UserError(f"the tokens of {request.model!r} can't be counted: it is not local")
        settings = {"tools": chat.tools} if chat.tools else {}
        return {"input_tokens": await asyncio.to_thread(count, chat.plain_messages(), **settings)}
