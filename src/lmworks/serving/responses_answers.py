"""Answers of the OpenAI Responses API: one object with output items, or the events that build it.

Every event has a `sequence_number`, from 0; what a client lost of a stream in the background it
asks for by the last one it has.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from lmworks.inference.base import Completion, Delta, TokenLogprob, Usage
from lmworks.serving.errors import ApiError
from lmworks.serving.openai_answers import chat_logprobs, usage_of
from lmworks.serving.responses_types import ResponsesRequest
from lmworks.serving.streaming import Event

Response = dict[str, Any]


class ResponsesReply:
    """The answer; see `turns.Reply`.

    Args:
        on_change: is given the whole object whenever its status changes, before the client is.
    """

    def __init__(
        self, request: ResponsesRequest, response_id: str, on_change: Callable[[Response], None]
    ) -> None:
        self._request, self._on_change = request, on_change
        self.id = response_id
        self._created = int(time.time())
        self._output: list[dict[str, Any]] = []
        self._number = -1

    def whole(self, completions: Sequence[Completion]) -> Response:
        """The answer in one piece."""
        (completion,) = completions
        calls = completion.tool_calls
        if completion.text or not calls:
            item = _message_item()
            item["content"] = [_text_part(completion.text, completion.logprobs)]
            self._output.append(item | {"status": "completed"})
        for call in calls:
            item = _call_item(call.id, call.name) | {"arguments": call.arguments}
            self._output.append(item | {"status": "completed"})
        return self._ended(completion.finish_reason, usage_of(completion))

    async def events(
        self, deltas: AsyncIterator[tuple[int, Delta]], prompt_tokens: int
    ) -> AsyncGenerator[Event, None]:
        """`response.created` to `response.completed`, or `response.incomplete`."""
        began = self.response("in_progress")
        yield self._event("response.created", response=began)
        yield self._event("response.in_progress", response=began)
        items = _Items(self._event, self._output)
        last: Delta | None = None
        async for _, delta in deltas:
            for event in items.events(delta):
                yield event
            if delta.finish_reason:
                last = delta
        if last is None:  # cancelled: what there is stays
            response = self.response("cancelled")
            self._on_change(response)
            yield self._event("response.cancelled", response=response)
            return
        for event in items.close(whole=last.finish_reason != "length"):
            yield event
        response = self._ended(last.finish_reason, last.usage)
        yield self._event(f"response.{response['status']}", response=response)

    def failed(self, error: ApiError) -> Event:
        """The last event of an answer that could not be finished."""
        said = {"code": error.code or "server_error", "message": error.message}
        response = self.response("failed") | {"error": said}
        self._on_change(response)
        return self._event("response.failed", response=response)

    def response(self, status: str, usage: Usage | None = None) -> Response:
        """The whole object as it is now."""
        asked = self._request
        choice = asked.tool_choice
        form = asked.text.format if asked.text else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": bool(asked.background),
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": asked.model,
            "output": list(self._output),
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "store": asked.store is not False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": form.model_dump(by_alias=True) if form else {"type": "text"}},
            "tool_choice": choice if isinstance(choice, str | None) else choice.model_dump(),
            "tools": [tool.model_dump() for tool in asked.tools or ()],
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": usage and _usage_object(usage),
            "user": asked.user,
        } | ({"tool_choice": "auto"} if choice is None else {})

    def _ended(self, reason: str | None, usage: Usage | None) -> Response:
        cut = reason == "length"
        response = self.response("incomplete" if cut else "completed", usage)
        if cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
            if self._output:
                self._output[-1]["status"] = "incomplete"
        self._on_change(response)
        return response

    def _event(self, name: str, **fields: Any) -> Event:
        self._number += 1
        return Event({"type": name, "sequence_number": self._number, **fields}, name)


class _Items:
    """The output items of a streamed answer: one is open at a time."""

    def __init__(self, event: Callable[..., Event], output: list[dict[str, Any]]) -> None:
        self._event, self._output = event, output
        self._call: int | None = None  # the index of the call that is open; None: none is
        self._text = False  # a text is open
        self._logprobs: list[TokenLogprob] = []

    def events(self, delta: Delta) -> list[Event]:
        events = []
        if delta.text:
            events += [] if self._text else self._begin_text()
            self._item["content"][0]["text"] += delta.text
            self._logprobs += delta.logprobs
            logprobs = _logprobs(delta.logprobs)
            place = self._place | {"content_index": 0}
            events.append(
                self._event(
                    "response.output_text.delta", **place, delta=delta.text, logprobs=logprobs
                )
            )
        for call in delta.tool_calls:
            if self._call != call.index:
                events += self._begin(_call_item(call.id, call.name))
                self._call = call.index
            if call.arguments:
                self._item["arguments"] += call.arguments
                name = "response.function_call_arguments.delta"
                events.append(self._event(name, **self._place, delta=call.arguments))
        return events

    def close(self, *, whole: bool = True) -> list[Event]:
        """The end of the item that is open; an answer without any gets an empty text."""
        events = self._begin_text() if not self._output else []
        if self._text:
            part = self._item["content"][0]
            part["logprobs"] = _logprobs(self._logprobs)
            place = self._place | {"content_index": 0}
            done = {"text": part["text"], "logprobs": part["logprobs"]}
            events.append(self._event("response.output_text.done", **place, **done))
            events.append(self._event("response.content_part.done", **place, part=dict(part)))
        elif self._call is not None:
            done = {"arguments": self._item["arguments"], "name": self._item["name"]}
            name = "response.function_call_arguments.done"
            events.append(self._event(name, **self._place, **done))
        else:
            return events
        self._item["status"] = "completed" if whole else "incomplete"
        at = len(self._output) - 1
        events.append(
            self._event("response.output_item.done", output_index=at, item=dict(self._item))
        )
        self._text, self._call = False, None
        self._logprobs = []
        return events

    @property
    def _item(self) -> dict[str, Any]:
        return self._output[-1]

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self._output) - 1}

    def _begin(self, item: dict[str, Any]) -> list[Event]:
        events = self.close() if self._output else []
        self._output.append(item)
        at = len(self._output) - 1
        return [
            *events,
            self._event("response.output_item.added", output_index=at, item=_copy(item)),
        ]

    def _begin_text(self) -> list[Event]:
        events = self._begin(_message_item())
        part = _text_part("", None)
        self._item["content"] = [part]
        self._text = True
        place = self._place | {"content_index": 0}
        return [*events, self._event("response.content_part.added", **place, part=dict(part))]


def _copy(item: Mapping[str, Any]) -> dict[str, Any]:
    return {**item, "content": list(item["content"])} if "content" in item else dict(item)


def _message_item() -> dict[str, Any]:
    name = f"msg_{uuid.uuid4().hex}"
    fixed = {"type": "message", "role": "assistant", "status": "in_progress"}
    return {"id": name, **fixed, "content": []}


def _call_item(call_id: str, name: str) -> dict[str, Any]:
    own = f"fc_{uuid.uuid4().hex}"
    fixed = {"type": "function_call", "status": "in_progress", "arguments": ""}
    return {"id": own, **fixed, "call_id": call_id, "name": name}


def _text_part(text: str, logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return part | {"logprobs": _logprobs(logprobs)}


def _logprobs(entries: Sequence[TokenLogprob] | None) -> list[dict[str, Any]]:
    found = chat_logprobs(entries)
    return found["content"] if found else []


def _usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
