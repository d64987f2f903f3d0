"""What is read of an answer on its way through: where events end, what was used, whether it began.

Events go on as the bytes they came as, each as soon as it is whole. Only an event in which `usage`
or an error stands is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

DONE = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 16 << 20
_PIECE = re.compile(
    rb'"(?:content|text|arguments|reasoning|reasoning_content|refusal|delta)": ?"[^"]'
)


class Tokens(NamedTuple):
    """What an answer used."""

    prompt: int
    completion: int
    cached: int = 0


class EventSplitter:
    """Cuts a stream of bytes into whole events, blank line included."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that are whole now. Raises: ValueError for one that does not end."""
        text = self._rest + piece if self._rest else piece
        events = []
        start = 0
        while (end := _blank_line(text, start)) > 0:
            events.append(text[start:end])
            start = end
        self._rest = text[start:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of over {MAX_EVENT_BYTES} bytes")
        return events

    @property
    def rest(self) -> bytes:
        """What came after the last blank line."""
        return self._rest


def _blank_line(text: bytes, start: int) -> int:
    """Where the first blank line from `start` ends, or -1."""
    plain = text.find(b"\n\n", start)
    windows = text.find(b"\r\n\r\n", start, plain if plain >= 0 else len(text))
    if windows >= 0:
        return windows + 4
    return plain + 2 if plain >= 0 else -1


def event_data(event: bytes) -> bytes:
    """The data of an event; empty for a comment."""
    if event.startswith(b"data: ") and event.count(b"\n") == 2:
        return event[6:].strip()
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)


def event_of(value: Any) -> bytes:
    """A JSON value as an event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def has_usage(event: bytes) -> bool:
    """Whether an event may hold counts; `"usage": null` holds none."""
    at = event.find(b'"usage"')
    return at >= 0 and not event[at + 7 :].lstrip(b" :").startswith(b"null")


def tokens_of(answer: Any) -> Tokens | None:
    """The counts in an answer or a chunk of one, in the words of any of OpenAI's endpoints."""
    usage = answer.get("usage") if isinstance(answer, Mapping) else None
    if usage is None and isinstance(answer, Mapping):  # events of the responses API
        usage = (answer.get("response") or {}).get("usage")
    if not isinstance(usage, Mapping):
        return None
    prompt = _count(usage, "prompt_tokens", "input_tokens")
    completion = _count(usage, "completion_tokens", "output_tokens")
    if not prompt and not completion:
        prompt = _count(usage, "total_tokens")
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    cached = _count(details, "cached_tokens") if isinstance(details, Mapping) else 0
    return Tokens(prompt, completion, min(prompt, cached))


def _count(values: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = values.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return 0


def is_piece(event: bytes) -> bool:
    """Whether an event carries a piece of an answer, which mostly is one token."""
    return _PIECE.search(event) is not None


def begins_answer(event: bytes) -> bool:
    """Whether an event says something; one with a role only, or a comment, does not yet.

    Raises: ValueError for data that is no JSON, or an error in place of an answer.
    """
    data = event_data(event)
    if not data:
        return False
    if data == b"[DONE]":
        return True
    chunk = json.loads(data)
    if not isinstance(chunk, Mapping):
        raise ValueError("an event that is no object")
    if chunk.get("error"):
        raise ValueError("an error in place of an answer")
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not choices:
        return "choices" not in chunk  # of another endpoint: every event counts
    return any(_says(choice) for choice in choices)


def _says(choice: Any) -> bool:
    if not isinstance(choice, Mapping) or choice.get("finish_reason") or choice.get("text"):
        return True
    delta = choice.get("delta")
    if not isinstance(delta, Mapping):
        return True
    return any(value for name, value in delta.items() if name != "role")
