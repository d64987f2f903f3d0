"""The answer objects of the OpenAI API; the families differ in what a choice holds."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from lmworks.inference.base import Completion, Delta, TokenLogprob, Usage


class Answer:
    """Builds the answer objects of one request."""

    def __init__(self, kind: str, id_prefix: str, model: str) -> None:
        self._kind, self._model = kind, model
        self._id = f"{id_prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, completions: Sequence[Completion], usage: Usage) -> dict[str, Any]:
        """The answer in one piece."""
        choices = [self._whole_choice(c) | {"index": i} for i, c in enumerate(completions)]
        return self._object(self._kind, choices) | {"usage": usage_object(usage)}

    def piece(self, index: int, delta: Delta, *, first: bool) -> dict[str, Any]:
        """One chunk of a streamed answer."""
        choice = self._piece_choice(delta, first) | {"index": index}
        choice["finish_reason"] = delta.finish_reason
        return self._object(self._chunk_kind, [choice])

    def usage_piece(self, usage: Usage) -> dict[str, Any]:
        """The last chunk, if it was asked for."""
        return self._object(self._chunk_kind, []) | {"usage": usage_object(usage)}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return head | {"choices": choices}

    @property
    def _chunk_kind(self) -> str:
        return self._kind

    def _whole_choice(self, completion: Completion) -> dict[str, Any]:
        raise NotImplementedError

    def _piece_choice(self, delta: Delta, first: bool) -> dict[str, Any]:
        raise NotImplementedError


def usage_object(usage: Usage) -> dict[str, int]:
    """`usage` as clients read it."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def chat_logprobs(entries: Iterable[TokenLogprob] | None) -> dict[str, Any] | None:
    """The `logprobs` of a choice of a chat; None where none were asked for."""
    if entries is None:
        return None
    content = []
    for entry in entries:
        top = [_logprob_object(token, logprob) for token, logprob in entry.top]
        content.append(_logprob_object(entry.token, entry.logprob) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def _logprob_object(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def text_logprobs(entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """The same for continued text."""
    if entries is None:
        return None
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [dict(entry.top) for entry in entries],
    }
