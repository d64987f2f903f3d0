"""Answers of the Anthropic Messages API: blocks of text or of calls, whole or as named events."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from lmworks.inference.base import Completion, Delta, Usage
from lmworks.serving.errors import ApiError
from lmworks.serving.openai_answers import usage_of
from lmworks.serving.streaming import Event

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessagesReply:
    """The answer; see `turns.Reply`."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.id = f"msg_{uuid.uuid4().hex}"

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The answer in one piece."""
        (completion,) = completions
        calls = completion.tool_calls
        blocks: list[dict[str, Any]] = []
        if completion.text or not calls:
            blocks.append({"type": "text", "text": completion.text})
        blocks += [_call_block(call.id, call.name, _input(call.arguments)) for call in calls]
        message = self._message(blocks, _usage_object(usage_of(completion)))
        return message | _ending(completion)

    async def events(
        self, deltas: AsyncIterator[tuple[int, Delta]], prompt_tokens: int
    ) -> AsyncGenerator[Event, None]:
        """`message_start`, blocks, `message_delta`, `message_stop`."""
        before = {"input_tokens": prompt_tokens, "output_tokens": 0}
        yield _event("message_start", message=self._message([], before))
        blocks = _Blocks()
        last: Delta | None = None
        async for _, delta in deltas:
            for event in blocks.events(delta):
                yield event
            if delta.finish_reason:
                last = delta
        for event in blocks.close():
            yield event
        if last is not None:
            usage = _usage_object(last.usage) if last.usage else before
            yield _event("message_delta", delta=_ending(last), usage=usage)
        yield _event("message_stop")

    def failed(self, error: ApiError) -> Event:
        """The last event of an answer that could not be finished."""
        return Event(error.anthropic_body(), "error")

    def _message(self, blocks: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": blocks,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }


class _Blocks:
    """The blocks of a streamed answer: one is open at a time."""

    def __init__(self) -> None:
        self._number = -1
        self._open: str | int | None = None  # "text", or the index of a call

    def events(self, delta: Delta) -> list[Event]:
        events = []
        if delta.text:
            if self._open != "text":
                events += self._begin("text", {"type": "text", "text": ""})
            events.append(self._piece({"type": "text_delta", "text": delta.text}))
        for call in delta.tool_calls:
            if self._open != call.index:
                events += self._begin(call.index, _call_block(call.id, call.name, {}))
            if call.arguments:
                piece = {"type": "input_json_delta", "partial_json": call.arguments}
                events.append(self._piece(piece))
        return events

    def close(self) -> list[Event]:
        """The end of the block that is open; an answer without any gets an empty one."""
        if self._number < 0:
            return self._begin("text", {"type": "text", "text": ""}) + self.close()
        if self._open is None:
            return []
        self._open = None
        return [_event("content_block_stop", index=self._number)]

    def _begin(self, kind: str | int, block: dict[str, Any]) -> list[Event]:
        events = self.close() if self._number >= 0 else []
        self._number, self._open = self._number + 1, kind
        return [*events, _event("content_block_start", index=self._number, content_block=block)]

    def _piece(self, delta: dict[str, Any]) -> Event:
        return _event("content_block_delta", index=self._number, delta=delta)


def _event(name: str, **fields: Any) -> Event:
    return Event({"type": name, **fields}, name)


def _call_block(name: str, function: str, values: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": name, "name": function, "input": values}


def _input(arguments: str) -> Any:
    try:
        values = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        values = None
    # What a model wrote need not be JSON; the API has no other place for it.
    return values if isinstance(values, dict) else {"arguments": arguments}


def _ending(last: Delta | Completion) -> dict[str, Any]:
    stop = last.stop_string or None
    reason = "stop_sequence" if stop else _REASONS[last.finish_reason or "stop"]
    return {"stop_reason": reason, "stop_sequence": stop}


def _usage_object(usage: Usage) -> dict[str, Any]:
    cached = usage.cached_tokens
    return {
        "input_tokens": usage.prompt_tokens - cached,  # there, those from the cache are apart
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }
