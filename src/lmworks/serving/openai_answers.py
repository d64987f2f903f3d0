"""The answer objects of the OpenAI API; the families differ in what a choice holds."""

from __future__ import annotations

import dataclasses
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.inference.base import Completion, Delta, TokenLogprob, Usage
from lmworks.serving.errors import ApiError
from lmworks.serving.streaming import DONE, Event

if TYPE_CHECKING:
    from lmworks.serving.openai_types import GenerationRequest


class Answer(ABC):
    """The answer to one request; see `turns.Reply`.

    Args:
        kind: the `object` of the answer; that of a piece follows from it.
    """

    def __init__(self, kind: str, id_prefix: str, request: GenerationRequest) -> None:
        self._kind, self._request, self._model = kind, request, request.model
        self.id = f"{id_prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The answer in one piece: for each prompt the best of what was drawn."""
        drawn, count = self._request.num_drawn, self._request.n or 1
        best: list[Completion] = []
        for first in range(0, len(completions), drawn):
            group = completions[first : first + drawn]
            best += (
                sorted(group, key=_mean_logprob, reverse=True)[:count] if drawn > count else group
            )
        if self._request.top_logprobs_wanted is None:
            best = [dataclasses.replace(completion, logprobs=None) for completion in best]
        choices = [
            self._whole_choice(c) | {"index": i} | _stop_reason(c) for i, c in enumerate(best)
        ]
        usage = total_usage([usage_of(c) for c in completions], drawn)
        return self._object(self._kind, choices) | {"usage": usage_object(usage)}

    async def events(
        self, deltas: AsyncIterator[tuple[int, Delta]], prompt_tokens: int
    ) -> AsyncGenerator[Event, None]:
        """The answer in pieces, then `[DONE]`."""
        later = {"usage": None} if self._request.include_usage else {}
        begun: set[int] = set()
        usages: dict[int, Usage] = {}
        async for index, delta in deltas:
            if delta.usage:
                usages[index] = delta.usage
            if index not in begun or says_something(delta):
                yield Event(self.piece(index, delta, first=index not in begun) | later)
            begun.add(index)
        if self._request.include_usage:
            usage = total_usage([usages[i] for i in sorted(usages)], self._request.num_drawn)
            yield Event(self._object(self._chunk_kind, []) | {"usage": usage_object(usage)})
        yield DONE

    def failed(self, error: ApiError) -> Event:
        """The last event of an answer that could not be finished."""
        return Event(error.body())

    def piece(self, index: int, delta: Delta, *, first: bool) -> dict[str, Any]:
        """One chunk of a streamed answer."""
        choice = self._piece_choice(delta, first) | {"index": index} | _stop_reason(delta)
        choice["finish_reason"] = delta.finish_reason
        return self._object(self._chunk_kind, [choice])

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self._created, "model": self._model}
        return head | {"choices": choices}

    @property
    def _chunk_kind(self) -> str:
        return self._kind

    @abstractmethod
    def _whole_choice(self, completion: Completion) -> dict[str, Any]:
        """What a choice of the whole answer holds, but its index."""

    @abstractmethod
    def _piece_choice(self, delta: Delta, first: bool) -> dict[str, Any]:
        """What a choice of a chunk holds, but its index and finish reason."""


def says_something(delta: Delta) -> bool:
    """Whether a piece is worth an event."""
    return bool(delta.text or delta.finish_reason or delta.logprobs or delta.tool_calls)


def usage_of(completion: Completion) -> Usage:
    """The counts of a whole answer."""
    return Usage(
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        cached_tokens=completion.cached_tokens,
        proposed_tokens=completion.proposed_tokens,
        accepted_tokens=completion.accepted_tokens,
    )


def total_usage(usages: Sequence[Usage], num_drawn: int) -> Usage:
    """The sum over the answers; a prompt that `num_drawn` of them share is counted once, and as
    cached only as far as each of them found it so."""
    groups = [usages[i : i + num_drawn] for i in range(0, len(usages), num_drawn)]
    return Usage(
        prompt_tokens=sum(group[0].prompt_tokens for group in groups),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(min(usage.cached_tokens for usage in group) for group in groups),
        proposed_tokens=sum(usage.proposed_tokens for usage in usages),
        accepted_tokens=sum(usage.accepted_tokens for usage in usages),
    )


def usage_object(usage: Usage) -> dict[str, Any]:
    """`usage` as clients read it."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    found: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.proposed_tokens:
        found["completion_tokens_details"] = {
            "accepted_prediction_tokens": usage.accepted_tokens,
            "rejected_prediction_tokens": usage.proposed_tokens - usage.accepted_tokens,
        }
    return found


def _stop_reason(ending: Delta | Completion) -> dict[str, str]:
    # Not OpenAI's; vLLM tells it under this name.
    return {"stop_reason": ending.stop_string} if ending.stop_string else {}


def _mean_logprob(completion: Completion) -> float:
    entries = completion.logprobs or ()
    return sum(entry.logprob for entry in entries) / max(len(entries), 1)


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
