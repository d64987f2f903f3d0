"""The requests of the OpenAI Responses API, checked, as the chat requests that they mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from lmworks.serving.chat_completions import ChatCompletionRequest
from lmworks.serving.openai_types import Metadata, Strict, Text, parse


class InputText(Strict):
    """A part of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: Text


class MessageItem(Strict):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Text | list[InputText]

    def as_chat(self) -> dict[str, Any]:
        """The same as a chat message."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class CallItem(Strict):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text

    def as_chat(self) -> dict[str, Any]:
        """The same as a chat message."""
        function = {"name": self.name, "arguments": self.arguments}
        call = {"id": self.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}


class CallOutputItem(Strict):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Text
    output: Text | list[InputText]

    def as_chat(self) -> dict[str, Any]:
        """The same as a chat message."""
        parts = self.output
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "tool", "tool_call_id": self.call_id, "content": text}


class ReasoningItem(Strict):
    """What another model thought before; it is left out."""

    type: Literal["reasoning"]


def _kind(item: Any) -> str:
    return str(
        item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    )


Item = Annotated[
    Annotated[MessageItem, pydantic.Tag("message")]
    | Annotated[CallItem, pydantic.Tag("function_call")]
    | Annotated[CallOutputItem, pydantic.Tag("function_call_output")]
    | Annotated[ReasoningItem, pydantic.Tag("reasoning")],
    pydantic.Discriminator(_kind),
]
_ITEMS: pydantic.TypeAdapter[list[Any]] = pydantic.TypeAdapter(list[Item])


class FunctionTool(Strict):
    """A function that the model may call; tools that run on the server's side are not offered."""

    type: Literal["function"]
    name: Text
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def as_chat(self) -> dict[str, Any]:
        """The same as a tool of a chat request."""
        fields = ("name", "description", "parameters", "strict")
        given = {name: value for name in fields if (value := getattr(self, name)) is not None}
        return {"type": "function", "function": given}


class NamedTool(Strict):
    """The tool that must be called."""

    type: Literal["function"]
    name: Text


class TextFormat(Strict):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: Text | None = None
    description: Text | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    def as_chat(self) -> dict[str, Any]:
        """The same as a `response_format`."""
        if self.type != "json_schema":
            return {"type": self.type}
        named = {"name": self.name or "answer", "schema": self.schema_, "strict": self.strict}
        given = {name: value for name, value in named.items() if value is not None}
        return {"type": "json_schema", "json_schema": given}


class TextOptions(Strict):
    """Of the answer's text."""

    format: TextFormat | None = None


class ResponsesStreamOptions(Strict):
    """Options of a streamed response; there is nothing here to choose."""

    include_obfuscation: bool | None = None


class ResponsesRequest(Strict):
    """`POST /v1/responses`."""

    model: str
    input: Text | list[Item]
    instructions: Text | None = None
    previous_response_id: Text | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    background: bool | None = None
    store: bool | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    truncation: Literal["disabled", "auto"] | None = None
    metadata: Metadata | None = None
    user: Text | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    # Ours, as in chat completions.
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    priority: int | None = None

    @pydantic.model_validator(mode="after")
    def _is_possible(self) -> ResponsesRequest:
        if self.input == []:
            raise ValueError("input: must not be empty")
        if self.truncation == "auto":
            raise ValueError("truncation: only 'disabled' is offered: shorten the input yourself")
        if self.background and self.store is False:
            raise ValueError("background: needs store, else nobody could fetch the answer")
        return self

    @property
    def wants_logprobs(self) -> bool:
        return (
            "message.output_text.logprobs" in (self.include or ()) or self.top_logprobs is not None
        )

    @property
    def items(self) -> list[dict[str, Any]]:
        """The input as items, as they are kept."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return [item.model_dump() for item in self.input]

    def as_chat(self, before: Sequence[dict[str, Any]]) -> ChatCompletionRequest:
        """The chat request that it means, after the items `before`. Raises: ApiError."""
        messages = list(chat_messages([*before, *self.items]))
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        tools = [tool.as_chat() for tool in self.tools or ()]
        choice: Any = self.tool_choice
        if isinstance(choice, NamedTool):
            choice = {"type": "function", "function": {"name": choice.name}}
        form = self.text.format.as_chat() if self.text and self.text.format else None
        values = {
            "model": self.model,
            "messages": messages,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "seed": self.seed,
            "stream": self.stream,
            "logprobs": True if self.wants_logprobs else None,
            "top_logprobs": self.top_logprobs,
            "tools": tools or None,
            "tool_choice": choice if tools else None,
            "parallel_tool_calls": self.parallel_tool_calls if tools else None,
            "response_format": form,
        }
        given = {name: value for name, value in values.items() if value is not None}
        return parse(ChatCompletionRequest, given)


def chat_messages(items: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Items as chat messages; calls that follow each other, or a text, are one message there."""
    last: dict[str, Any] | None = None
    for item in _ITEMS.validate_python(items):
        if isinstance(item, ReasoningItem):
            continue
        message = item.as_chat()
        if last and "tool_calls" in message and last["role"] == "assistant":
            last.setdefault("tool_calls", []).extend(message["tool_calls"])
            continue
        if last:
            yield last
        last = message
    if last:
        yield last
