"""Answers that are given again for the same request.

Everything that the answer depends on is in the key of an entry, and so is the id of the client's
key: two tenants never share an answer, whatever they ask. Entries live in memory, with an age and
within a bound; only whole, successful answers are kept, and a stream is put together first. A hit
costs a request of the quota and no tokens.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from lmworks.serving.gateway.relay import DONE, event_data, event_of

CACHED_PATHS = ("/chat/completions", "/completions", "/embeddings")
# How an answer is sent, or who asked; not what it says.
_NO_MATTER = frozenset({"stream", "stream_options", "user", "metadata", "store", "service_tier"})


class ExactCache:
    """Answers by digest; the least recently used go first."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self._max_bytes, self._ttl_s = max_bytes, ttl_s
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self.num_bytes = 0
        self.hits = self.misses = 0

    def get(self, digest: str) -> Any:
        """The answer, or None."""
        entry = self._entries.get(digest)
        if entry is None or time.monotonic() - entry[0] > self._ttl_s:
            self.misses += 1
            return None
        self._entries.move_to_end(digest)
        self.hits += 1
        return json.loads(entry[1])

    def put(self, digest: str, answer: Any) -> None:
        """Keep an answer; one that would fill a quarter of the room is not kept."""
        data = json.dumps(answer, ensure_ascii=False).encode()
        if len(data) > self._max_bytes // 4:
            return
        self.drop(digest)
        self._entries[digest] = (time.monotonic(), data)
        self.num_bytes += len(data)
        while self.num_bytes > self._max_bytes:
            _, (_, oldest) = self._entries.popitem(last=False)
            self.num_bytes -= len(oldest)

    def drop(self, digest: str) -> None:
        """Forget an answer."""
        if entry := self._entries.pop(digest, None):
            self.num_bytes -= len(entry[1])

    def __len__(self) -> int:
        return len(self._entries)


def may_cache(path: str, body: Mapping[str, Any], when: str) -> bool:
    """Whether such a request is answered from a cache at all."""
    if path not in CACHED_PATHS or (body.get("n") or 1) != 1 or body.get("best_of"):
        return False
    if path == "/embeddings" or when == "always":
        return True
    return body.get("temperature") == 0 or body.get("seed") is not None


def digest(key_id: str, path: str, body: Mapping[str, Any]) -> str:
    """What an entry is kept under: who asked, where, and all that the answer depends on."""
    matters = {name: value for name, value in body.items() if name not in _NO_MATTER}
    text = json.dumps([key_id, path, matters], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def as_events(answer: Mapping[str, Any], *, include_usage: bool) -> list[bytes]:
    """A whole answer as the events of a stream."""
    chat = answer.get("object") == "chat.completion"
    head = {name: answer.get(name) for name in ("id", "created", "model")}
    head["object"] = "chat.completion.chunk" if chat else "text_completion"
    events = []
    for choice in answer.get("choices") or ():
        plain = {"index": choice.get("index", 0), "logprobs": choice.get("logprobs")}
        reason = {"finish_reason": choice.get("finish_reason")}
        if chat:
            delta = _numbered(choice.get("message") or {})
            events.append({**head, "choices": [{**plain, "delta": delta, "finish_reason": None}]})
            events.append({**head, "choices": [{**plain, "delta": {}, "logprobs": None, **reason}]})
        else:
            text = choice.get("text", "")
            events.append({**head, "choices": [{**plain, "text": text, **reason}]})
    if include_usage:
        events.append({**head, "choices": [], "usage": answer.get("usage")})
    return [*(event_of(event) for event in events), DONE]


def _numbered(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as one delta: tool calls are told apart by a number there."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return dict(message)
    return {**message, "tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]}


def put_together(events: Sequence[bytes], *, chat: bool) -> dict[str, Any] | None:
    """The whole answer that a stream of one choice amounts to; None where it did not end well."""
    chunks = [json.loads(data) for e in events if (data := event_data(e)) not in (b"", b"[DONE]")]
    if not chunks or any("error" in chunk for chunk in chunks):
        return None
    usage = next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), None)
    choices = [choice for chunk in chunks for choice in chunk.get("choices") or ()]
    reason = next((c["finish_reason"] for c in reversed(choices) if c.get("finish_reason")), None)
    # Log-probs come in forms that differ; such an answer is passed on and not kept.
    if reason is None or usage is None or any(c.get("index") or c.get("logprobs") for c in choices):
        return None
    head = {name: chunks[0].get(name) for name in ("id", "created", "model")}
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
    if chat:
        choice["message"] = _message([c.get("delta") or {} for c in choices])
    else:
        choice["text"] = "".join(c.get("text") or "" for c in choices)
    kind = "chat.completion" if chat else "text_completion"
    return {**head, "object": kind, "choices": [choice], "usage": usage}


def _message(deltas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One message out of deltas: texts are joined, tool calls gathered by their number."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for name, value in delta.items():
            if name == "tool_calls":
                for part in value or ():
                    _add_call(calls, part)
            elif isinstance(value, str) and name != "role":
                message[name] = (message.get(name) or "") + value
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message


def _add_call(calls: dict[int, dict[str, Any]], part: Mapping[str, Any]) -> None:
    call = calls.setdefault(part.get("index") or 0, {"type": "function", "function": {}})
    if part.get("id"):
        call["id"] = part["id"]
    for name, text in (part.get("function") or {}).items():
        call["function"][name] = call["function"].get(name, "") + (text or "")
