"""The requests of the Anthropic Messages API, checked, as the chat requests that they mean."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from lmworks.inference.base import ChatModel
from lmworks.serving.anthropic_answers import MessagesReply
from lmworks.serving.chat_completions import ChatCompletionRequest
from lmworks.serving.generation import Opener
from lmworks.serving.openai_types import Strict, Text, parse


class TextBlock(Strict):
    """A part of a message that is text. `cache_control` is not needed: beginnings are shared."""

    type: Literal["text"]
    text: Text


class ToolUseBlock(Strict):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: Text
    name: Text
    input: dict[str, Any]


class ToolResultBlock(Strict):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: Text
    content: Text | list[TextBlock] | None = None
    is_error: bool | None = None


class ThinkingBlock(Strict):
    """What another model thought before; it is left out."""

    type: Literal["thinking", "redacted_thinking"]


Block = Annotated[
    TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock, Field(discriminator="type")
]


class AnthropicMessage(Strict):
    """One turn."""

    role: Literal["user", "assistant"]
    content: Text | list[Block]

    def as_chat(self) -> Iterator[dict[str, Any]]:
        """The same in OpenAI's words: results of tools are messages of their own there."""
        blocks = self.content
        if isinstance(blocks, str):
            yield {"role": self.role, "content": blocks}
            return
        for block in blocks:
            if isinstance(block, ToolResultBlock):
                content = joined(block.content or "")
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
        text = joined([block for block in blocks if isinstance(block, TextBlock)])
        calls = [_as_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
        if calls:
            yield {"role": self.role, "content": text or None, "tool_calls": calls}
        elif any(not isinstance(block, ToolResultBlock) for block in blocks):
            yield {"role": self.role, "content": text}


class Tool(Strict):
    """A function that the model may call."""

    type: Literal["custom"] | None = None  # others run on Anthropic's machines
    name: Text
    description: Text | None = None
    input_schema: dict[str, Any]


class ToolChoice(Strict):
    """Which of them it may or must."""

    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: bool | None = None

    def as_chat(self) -> Any:
        """The same in OpenAI's words."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name or ""}}
        return {"any": "required"}.get(self.type, self.type)


class RequestMetadata(Strict):
    """Of the request."""

    user_id: Text | None = None


class CountRequest(Strict):
    """`POST /v1/messages/count_tokens`."""

    model: str
    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: Text | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None

    @pydantic.model_validator(mode="after")
    def _ends_with_a_question(self) -> CountRequest:
        if self.messages[-1].role == "assistant":
            raise ValueError("messages: the last must be the user's: an answer is not gone on with")
        return self

    def as_chat(self, **further: Any) -> ChatCompletionRequest:
        """The chat request that it means. Raises: ApiError."""
        messages = [each for message in self.messages for each in message.as_chat()]
        if self.system:
            messages.insert(0, {"role": "system", "content": joined(self.system)})
        values = {"model": self.model, "messages": messages, **further}
        if self.tools:
            values["tools"] = [_as_function(tool) for tool in self.tools]
        if self.tools and self.tool_choice:
            values["tool_choice"] = self.tool_choice.as_chat()
            if self.tool_choice.disable_parallel_tool_use:
                values["parallel_tool_calls"] = False
        given = {name: value for name, value in values.items() if value is not None}
        return parse(ChatCompletionRequest, given)


class MessagesRequest(CountRequest):
    """`POST /v1/messages`."""

    max_tokens: int
    stop_sequences: list[Text] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    metadata: RequestMetadata | None = None
    _chat: ChatCompletionRequest | None = pydantic.PrivateAttr(default=None)

    @property
    def resumable(self) -> bool:
        return False

    @property
    def user(self) -> str | None:
        return self.metadata.user_id if self.metadata else None

    @property
    def chat(self) -> ChatCompletionRequest:
        """The same as a chat request. Raises: ApiError."""
        if self._chat is None:
            self._chat = self.as_chat(
                max_tokens=self.max_tokens,
                stop=self.stop_sequences or None,
                stream=self.stream,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
            )
        return self._chat

    def openers(self, model: ChatModel, options: Mapping[str, Any]) -> list[Opener]:
        """See `turns.Turn`."""
        return self.chat.openers(model, options)

    def reply(self) -> MessagesReply:
        """See `turns.Turn`."""
        return MessagesReply(self.model)

    def own_name(self, param: str) -> str:
        """See `turns.Turn`."""
        return "stop_sequences" if param == "stop" else param

    def traced(self) -> dict[str, Any]:
        """See `turns.Turn`."""
        return self.chat.traced()


def joined(content: str | list[TextBlock]) -> str:
    """A content that may come in blocks."""
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _as_call(block: ToolUseBlock) -> dict[str, Any]:
    arguments = json.dumps(block.input, ensure_ascii=False)
    return {
        "id": block.id,
        "type": "function",
        "function": {"name": block.name, "arguments": arguments},
    }


def _as_function(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}
