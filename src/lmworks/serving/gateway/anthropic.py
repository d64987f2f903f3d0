"""A back end that speaks Anthropic's Messages API, behind OpenAI's chat completions.

Texts, images, tools and their results go both ways, streamed or whole. Settings that the API has no
word for (penalties, log-probs, a schema) are refused by name where leaving them out would give
another answer than was asked for, and left out where it would not (`user`, `seed`).
Source: the reference of `POST /v1/messages`, version 2023-06-01.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from lmworks.serving.errors import ApiError
from lmworks.serving.gateway.dialects import EventTranslator
from lmworks.serving.gateway.relay import DONE, event_data, event_of

_VERSION = "2023-06-01"
_MAX_TOKENS = 4096  # a limit must be given there
_REFUSED = ("logprobs", "top_logprobs", "logit_bias", "frequency_penalty", "presence_penalty")
_REASONS = {"max_tokens": "length", "tool_use": "tool_calls", "refusal": "content_filter"}
_DATA_URL = re.compile(r"data:([\w/+.-]{1,100});base64,(.*)", re.DOTALL)


class Anthropic:
    """See `dialects.Dialect`."""

    def headers(self, api_key: str) -> dict[str, str]:
        """Key and version of the API."""
        return {"anthropic-version": _VERSION} | ({"x-api-key": api_key} if api_key else {})

    def ask(self, path: str, body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Raises: ApiError for another endpoint, or a setting that can't be honoured."""
        if path != "/chat/completions":
            raise _unknown(f"/v1{path}", "this model answers /v1/chat/completions only")
        for name in _REFUSED:
            if body.get(name):
                raise _unknown(name, "this model's server has no such setting")
        if (body.get("n") or 1) != 1:
            raise _unknown("n", "this model's server gives one answer at a time")
        if (body.get("response_format") or {}).get("type") not in (None, "text"):
            raise _unknown("response_format", "this model's server has no such setting")
        system, messages = _messages(body.get("messages"))
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or _MAX_TOKENS
        asked: dict[str, Any] = {"model": body["model"], "messages": messages, "max_tokens": limit}
        if system:
            asked["system"] = system
        for name in ("temperature", "top_p", "top_k", "stream"):
            if body.get(name) is not None:
                asked[name] = body[name]
        if "temperature" in asked:
            asked["temperature"] = min(1.0, asked["temperature"])  # the highest one there
        if stop := body.get("stop"):
            asked["stop_sequences"] = [stop] if isinstance(stop, str) else stop
        asked |= _tools(body)
        return "/messages", asked

    def whole(self, answer: Any) -> Any:
        """A message as a chat completion."""
        if answer.get("type") != "message":
            raise ValueError("an answer that is no message")
        text, calls = [], []
        for block in answer.get("content") or ():
            if block.get("type") == "text":
                text.append(block["text"])
            elif block.get("type") == "tool_use":
                calls.append(_call(block["id"], block["name"], json.dumps(block["input"])))
        message: dict[str, Any] = {"role": "assistant", "content": "".join(text) or None}
        if calls:
            message["tool_calls"] = calls
        reason = _reason(answer.get("stop_reason"))
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return {
            "id": f"chatcmpl-{answer.get('id') or uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": answer.get("model", ""),
            "choices": [choice],
            "usage": _usage(answer.get("usage") or {}),
        }

    def translator(self) -> EventTranslator | None:
        """One for each stream."""
        return _Events()


class _Events:
    """The events of a streamed message as chunks of a chat completion."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {"object": "chat.completion.chunk"}
        self._usage: dict[str, Any] = {}
        self._calls = -1

    def feed(self, event: bytes) -> list[bytes]:
        """See `EventTranslator`."""
        data = event_data(event)
        if not data:
            return []
        value = json.loads(data)
        match value.get("type"):
            case "message_start":
                message = value["message"]
                self._usage = dict(message.get("usage") or {})
                self._head |= {"id": f"chatcmpl-{message.get('id')}", "created": int(time.time())}
                self._head["model"] = message.get("model", "")
                return [self._chunk({"role": "assistant", "content": ""})]
            case "content_block_start":
                block = value["content_block"]
                if block.get("type") != "tool_use":
                    return []
                self._calls += 1
                call = _call(block["id"], block["name"], "")
                return [self._chunk({"tool_calls": [{"index": self._calls, **call}]})]
            case "content_block_delta":
                return self._delta(value["delta"])
            case "message_delta":
                self._usage |= value.get("usage") or {}
                return [self._chunk({}, _reason(value["delta"].get("stop_reason")))]
            case "message_stop":
                chunk = {**self._head, "choices": [], "usage": _usage(self._usage)}
                return [event_of(chunk), DONE]
            case "error":
                return [event_of({"error": value.get("error") or {"message": "no reason given"}})]
        return []

    def _delta(self, delta: Mapping[str, Any]) -> list[bytes]:
        if delta.get("type") == "text_delta":
            return [self._chunk({"content": delta["text"]})]
        if delta.get("type") == "input_json_delta":
            part = {"index": self._calls, "function": {"arguments": delta["partial_json"]}}
            return [self._chunk({"tool_calls": [part]})]
        return []

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event_of({**self._head, "choices": [choice]})


def _messages(given: Any) -> tuple[str, list[dict[str, Any]]]:
    """(system prompt, messages in turns of user and assistant)."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in given if isinstance(given, list) else ():
        if not isinstance(message, Mapping):
            raise _unknown("messages", "each must be an object")
        role = message.get("role")
        if role in ("system", "developer"):
            system.append("".join(b.get("text", "") for b in _blocks(message.get("content"))))
            continue
        blocks = _blocks(message.get("content"))
        if role == "tool":
            result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id")}
            blocks, role = [{**result, "content": blocks}], "user"
        for call in message.get("tool_calls") or ():
            blocks.append(_tool_use(call))
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    return "\n\n".join(system), turns


def _blocks(content: Any) -> list[dict[str, Any]]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    blocks = []
    for part in content:
        kind = part.get("type")
        if kind == "text":
            blocks.append({"type": "text", "text": part["text"]})
        elif kind == "image_url":
            blocks.append({"type": "image", "source": _source(part["image_url"]["url"])})
        else:
            raise _unknown("messages", f"parts of type {kind!r} can't be sent to this model")
    return blocks


def _source(url: str) -> dict[str, str]:
    if found := _DATA_URL.fullmatch(url):
        return {"type": "base64", "media_type": found[1], "data": found[2]}
    return {"type": "url", "url": url}


def _tool_use(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        raise _unknown("messages", "arguments of a tool call that are no JSON") from None
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    choice, tools = body.get("tool_choice"), body.get("tools")
    if not tools or choice == "none":
        return {}
    made = []
    for tool in tools:
        function = tool["function"]
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        entry = {"name": function["name"], "input_schema": schema}
        if function.get("description"):
            entry["description"] = function["description"]
        made.append(entry)
    if isinstance(choice, Mapping):
        return {"tools": made, "tool_choice": {"type": "tool", "name": choice["function"]["name"]}}
    kind = {"required": "any"}.get(str(choice), "auto")
    return {"tools": made, "tool_choice": {"type": kind}}


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _reason(reason: Any) -> str | None:
    return None if reason is None else _REASONS.get(str(reason), "stop")


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens read from and written to their cache count as prompt, as they do in OpenAI's words."""
    cached = usage.get("cache_read_input_tokens") or 0
    made = usage.get("cache_creation_input_tokens") or 0
    prompt = (usage.get("input_tokens") or 0) + cached + made
    completion = usage.get("output_tokens") or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _unknown(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}", param=param, code="unsupported_value")
