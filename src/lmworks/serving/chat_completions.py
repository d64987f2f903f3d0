"""`POST /v1/chat/completions`: a conversation in, the next turn out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from lmworks.inference.base import ChatModel, Completion, Delta, ToolCall, ToolCallDelta
from lmworks.serving.bodies import read_json
from lmworks.serving.generation import Opener
from lmworks.serving.openai_answers import Answer, chat_logprobs
from lmworks.serving.openai_types import GenerationRequest, Json, Message, Text, parse
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
    tools: list[Json] | None = None
    tool_choice: Text | Json | None = None
    parallel_tool_calls: bool | None = None

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
        calls = [_call_object(call) for call in completion.tool_calls]
        text = completion.text or (None if calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        return {
            "message": message | ({"tool_calls": calls} if calls else {}),
            "logprobs": chat_logprobs(completion.logprobs),
            "finish_reason": completion.finish_reason,
        }

    def _piece_choice(self, delta: Delta, first: bool) -> dict[str, Any]:
        content: dict[str, Any] = {"role": "assistant"} if first else {}
        if first or delta.text:
            content["content"] = delta.text or (None if delta.tool_calls else "")
        if delta.tool_calls:
            content["tool_calls"] = [
                {"index": piece.index} | _call_object(piece) for piece in delta.tool_calls
            ]
        return {"delta": content, "logprobs": chat_logprobs(delta.logprobs or None)}


def _call_object(call: ToolCall | ToolCallDelta) -> dict[str, Any]:
    """A call, or a piece of one: only the first has an id and a name. `problem` is our own."""
    function = {"name": call.name} if call.name else {}
    found: dict[str, Any] = {"function": function | {"arguments": call.arguments}}
    if call.id:
        found |= {"id": call.id, "type": "function"}
    return found | ({"problem": call.problem} if call.problem else {})


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    @app.post("/v1/chat/completions", **takes(app, ChatCompletionRequest, streams=True))
    async def chat_completions(http: Request) -> Response:
        values = await read_json(http, service.max_body_bytes)
        return await service.generate(http, parse(ChatCompletionRequest, values))
