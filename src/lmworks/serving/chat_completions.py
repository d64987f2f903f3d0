"""`POST /v1/chat/completions`: a conversation in, the next turn out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from lmworks.inference.base import ChatModel, Completion, Delta
from lmworks.serving.bodies import read_json
from lmworks.serving.generation import Opener
from lmworks.serving.openai_answers import Answer, chat_logprobs
from lmworks.serving.openai_types import GenerationRequest, Message, parse
from lmworks.serving.openapi import takes
from lmworks.serving.service import Service


class ChatCompletionRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    operation: ClassVar[str] = "chat"
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def token_limit(self) -> int | None:
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

    def own_name(self, param: str) -> str:
        if param == "max_tokens" and self.max_completion_tokens is not None:
            return "max_completion_tokens"
        return "top_logprobs" if param == "logprobs" else param

    @property
    def top_logprobs_wanted(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def plain_messages(self) -> list[dict[str, Any]]:
        """The messages as a `ChatModel` takes them."""
        return [message.plain() for message in self.messages]

    def openers(self, model: ChatModel, options: Mapping[str, Any]) -> list[Opener]:
        messages = self.plain_messages()
        return [
            functools.partial(model.stream, messages, **self.sampling(i), **options)
            for i in range(self.num_drawn)
        ]

    def reply(self) -> ChatAnswer:
        return ChatAnswer("chat.completion", "chatcmpl", self)


class ChatAnswer(Answer):
    """Choices that hold a message, or a delta of one."""

    @property
    def _chunk_kind(self) -> str:
        return self._kind + ".chunk"

    def _whole_choice(self, completion: Completion) -> dict[str, Any]:
        return {
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": chat_logprobs(completion.logprobs),
            "finish_reason": completion.finish_reason,
        }

    def _piece_choice(self, delta: Delta, first: bool) -> dict[str, Any]:
        content: dict[str, Any] = {"role": "assistant"} if first else {}
        if first or delta.text:
            content["content"] = delta.text
        return {"delta": content, "logprobs": chat_logprobs(delta.logprobs or None)}


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    @app.post("/v1/chat/completions", **takes(app, ChatCompletionRequest, streams=True))
    async def chat_completions(http: Request) -> Response:
        values = await read_json(http, service.max_body_bytes)
        return await service.generate(http, parse(ChatCompletionRequest, values))
