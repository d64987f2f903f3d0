"""`POST /v1/feedback`: what a client's users think of an answer; `DELETE` takes it back.

The answer may be any, of this server or not: it is sent along with the messages before it. What is
told again of the same `id` replaces what was told before. Nobody is shown what others told;
`lmworks data feedback` reads it on the server's machine.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from lmworks.core.errors import UserError
from lmworks.serving.bodies import read_json
from lmworks.serving.callers import Caller
from lmworks.serving.errors import ApiError
from lmworks.serving.feedback.values import checked
from lmworks.serving.openai_types import Message, Strict, Text, parse
from lmworks.serving.openapi import takes
from lmworks.serving.service import Service


class FeedbackRequest(Strict):
    """`POST /v1/feedback`: a rating, a correction or both, of one answer."""

    messages: list[Message]
    answer: Text
    rating: Literal["up", "down", 1, -1] | None = None
    correction: Text | None = None
    comment: Text | None = None
    model: Text | None = None
    id: Text | None = None  # of the answer, such as chatcmpl-...
    user: Text | None = None

    def prompt(self) -> list[dict[str, str]]:
        """The messages as texts. Raises: ApiError (400) for calls of tools, which are none."""
        if any(m.role == "tool" or m.tool_calls for m in self.messages):
            message = "messages: calls of tools can't be learnt from: send what was said"
            raise ApiError(400, message, param="messages", code="invalid_value")
        return [{"role": _ROLES.get(m.role, m.role), "content": _text(m)} for m in self.messages]


_ROLES = {"developer": "system"}


def _text(message: Message) -> str:
    content = message.content
    if isinstance(content, list):
        return "".join(part.text for part in content)
    return content or ""


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    @app.post("/v1/feedback", **takes(app, FeedbackRequest))
    async def tell(http: Request) -> Any:
        request = parse(FeedbackRequest, await read_json(http, service.max_body_bytes))
        prompt = request.prompt()
        correction, comment = request.correction or "", request.comment or ""
        try:
            rating = checked(
                "",
                prompt=prompt,
                answer=request.answer,
                rating=request.rating,
                correction=correction,
                comment=comment,
            )
        except UserError as error:
            param = str(error).partition(":")[0]
            known = param if param in FeedbackRequest.model_fields else None
            raise ApiError(400, str(error), param=known, code="invalid_value") from None
        feedback_id = await asyncio.to_thread(
            service.conversations.feedback.tell,
            Caller.of(http, request).client,
            prompt=prompt,
            answer=request.answer,
            rating=rating,
            correction=correction,
            comment=comment,
            model=request.model or "",
            name=request.id or "",
        )
        return JSONResponse({"id": feedback_id, "object": "feedback"}, 201)

    @app.delete("/v1/feedback/{feedback_id}")
    async def withdraw(feedback_id: str, http: Request) -> Any:
        client = Caller.of(http).client
        taken = await asyncio.to_thread(
            service.conversations.feedback.withdraw, client, feedback_id
        )
        if not taken:
            message = f"no feedback {feedback_id!r} of yours"
            raise ApiError(404, message, param="feedback_id", code="not_found")
        return {"id": feedback_id, "object": "feedback.deleted", "deleted": True}
