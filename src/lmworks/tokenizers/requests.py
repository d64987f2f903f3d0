"""A chat request as OpenAI's API takes it, read from JSON and checked, every fault with its place.

Left out: audio, files and video in messages, which are refused by their name.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmworks.core.errors import UserError, nearest
from lmworks.tokenizers.image_size import Size, data_url_size, parse_size

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXT, _IMAGE = ("text", "input_text", "output_text"), ("image_url", "input_image", "image")
ChatMessage = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """A picture in a message."""

    size: Size
    detail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Messages and tools, checked; `body` is the whole as it came, to be written again."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[ChatMessage, ...]
    body: Mapping[str, Any]

    @property
    def max_tokens(self) -> int | None:
        """Tokens that the request itself keeps for the answer."""
        for key in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
            value = self.body.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    def with_messages(self, messages: Sequence[ChatMessage]) -> dict[str, Any]:
        """The body with other messages."""
        return {**self.body, "messages": list(messages)}


def parse_request(text: str | bytes, where: str = "request") -> Request:
    """A request out of JSON: an object with `messages`, or the list of messages alone.

    Raises: UserError with the line and column, or the place in the object, of the first fault.
    """
    try:
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON: nested too deeply or a number too long") from (
            error
        )
    return read_request(value, where)


def read_request(value: Any, where: str = "request") -> Request:
    """A request out of plain values. Raises: UserError with the place of the first fault."""
    body = {"messages": value} if isinstance(value, list) else value
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise UserError(f"{where} has no list of `messages`")
    if not body["messages"]:
        raise UserError(f"{where}: `messages` is empty")
    awaited = False  # whether a result may stand here
    for index, message in enumerate(body["messages"]):
        place = f"{where}: messages[{index}]"
        _check_message(message, place)
        result = message["role"] in ("tool", "function")
        if result and not awaited:
            raise UserError(f"{place} is a tool's result, and no call stands before it")
        awaited = result or bool(message.get("tool_calls") or message.get("function_call"))
    return Request(
        messages=tuple(body["messages"]), tools=tuple(_tools(body.get("tools"), where)), body=body
    )


def _check_message(message: Any, place: str) -> None:
    if not isinstance(message, dict):
        raise UserError(f"{place} is no object with `role` and `content`")
    role = message.get("role")
    if role not in ROLES:
        close = nearest(str(role), ROLES)
        hint = f"did you mean {close!r}? " if close else ""
        raise UserError(f"{place} has role {role!r}: {hint}known: {', '.join(ROLES)}")
    content = message.get("content")
    if content is None:
        if role == "assistant" and (message.get("tool_calls") or message.get("function_call")):
            _check_calls(message, place)
            return
        raise UserError(f"{place} has no `content`")
    if not isinstance(content, str | list):
        raise UserError(f"{place}.content is neither text nor a list of parts")
    for number, part in enumerate(content if isinstance(content, list) else ()):
        _check_part(part, f"{place}.content[{number}]")
    _check_calls(message, place)


def _check_part(part: Any, place: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT:
        if not isinstance(part.get("text"), str):
            raise UserError(f"{place} has no `text`")
    elif kind not in _IMAGE:
        raise UserError(f"{place} is of type {kind!r}: known: text, image_url")


def _check_calls(message: ChatMessage, place: str) -> None:
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list):
        raise UserError(f"{place}.tool_calls is no list")
    for number, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UserError(f"{place}.tool_calls[{number}] names no `function`")


def _tools(tools: Any, where: str) -> Iterator[ChatMessage]:
    if tools is None:
        return
    if not isinstance(tools, list):
        raise UserError(f"{where}: `tools` is no list")
    for number, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UserError(f"{where}: tools[{number}] names no `function`")
        yield tool


def images_of(message: ChatMessage, place: str, unknown: Size | None = None) -> list[Image]:
    """The pictures of a message, sizes read from their data or as they are given.

    A part may say `width` and `height` beside its URL, or have `1024x768` for one.

    Args:
        unknown: the size taken for pictures that are only linked.
    Raises: UserError with the place of a picture whose size is not known.
    """
    content = message.get("content")
    found = []
    for number, part in enumerate(content if isinstance(content, list) else ()):
        if part.get("type") in _IMAGE:
            found.append(_image(part, f"{place}.content[{number}]", unknown))
    return found


def _image(part: ChatMessage, place: str, unknown: Size | None) -> Image:
    inner = part.get("image_url", part.get("image", part))
    given = inner if isinstance(inner, dict) else {**part, "url": inner}
    url, detail = given.get("url"), given.get("detail", "auto")
    width, height = given.get("width"), given.get("height")
    try:
        if isinstance(width, int) and isinstance(height, int):
            size = parse_size(f"{width}x{height}")
        elif isinstance(url, str) and url[:5].lower() == "data:":
            size = data_url_size(url)
        elif isinstance(url, str) and url[:1].isdigit():
            size = parse_size(url)
        elif unknown is not None:
            size = unknown
        else:
            raise UserError("a linked image, whose size is not known: say it with --image-size")
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    return Image(size=size, detail=detail if isinstance(detail, str) else "auto")


def text_of(message: ChatMessage) -> str:
    """The text of a message, of several parts a line each."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part.get("type") in _TEXT)
    return content or ""


def for_template(message: ChatMessage, *, parts: bool) -> ChatMessage:
    """A message as chat templates expect it.

    `developer` becomes `system`; arguments of calls become objects where they are valid JSON
    objects, since templates write them as JSON themselves; no content becomes an empty one, which
    some templates need; pictures lose their data.

    Args:
        parts: whether the template reads lists of parts; else texts are joined by lines.
    """
    changed = dict(message)
    if changed["role"] == "developer":
        changed["role"] = "system"
    changed["content"] = changed.get("content") or ""
    if isinstance(changed["content"], list):
        changed["content"] = (
            [_plain_part(part) for part in changed["content"]] if parts else text_of(message)
        )
    if changed.get("tool_calls"):
        changed["tool_calls"] = [_with_object(call) for call in changed["tool_calls"]]
    return changed


def _plain_part(part: ChatMessage) -> ChatMessage:
    if part.get("type") in _TEXT:
        return {"type": "text", "text": part["text"]}
    return {"type": "image"}


def _with_object(call: ChatMessage) -> ChatMessage:
    function = dict(call["function"])
    if isinstance(function.get("arguments"), str):
        try:
            value = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            return call
        if isinstance(value, dict):
            function["arguments"] = value
    return {**call, "function": function}
