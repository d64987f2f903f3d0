"""The protocol that everything which talks to a model stands on, and the values it passes.

Messages are the OpenAI ones: mappings with `role` and `content`, with `tool_calls` where a model
called tools, and of the role `tool` for what these gave. Settings are keyword arguments: the fields
of `lmworks.inference.sampling.Sampling`, and what `lmworks.inference.settings` lists beside them
(tools, the form of the answer).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length", "tool_calls"]
Messages = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """One produced token's log-probability in nats, before temperature and filters."""

    token: str
    logprob: float
    token_id: int | None = None  # None from a remote endpoint
    top: tuple[tuple[str, float], ...] = ()  # the likeliest tokens here, best first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """What a request cost. The token that ends an answer is counted as produced.

    `cached_tokens` of the prompt did not have to be read: an earlier request began alike. Of
    `proposed_tokens` that speculation guessed, `accepted_tokens` were kept.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call that the model wants made. Whoever asked makes it, or not.

    Attributes:
        arguments: JSON text as the model wrote it.
        problem: what is wrong with the call, in one line: an unknown tool, arguments that are no
            JSON or break the tool's schema. Empty for a good one.
    """

    id: str
    name: str
    arguments: str
    problem: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolCallDelta:
    """A piece of the call number `index`: the first has `id` and `name`, pieces of the arguments
    follow, and a `problem` comes last."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    problem: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta:
    """The next piece of an answer. The last one has a `finish_reason`, and `usage` if known."""

    text: str
    finish_reason: FinishReason | None = None
    stop_string: str = ""  # the one that ended it, if one did
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """A whole answer. `logprobs` is None unless they were asked for."""

    text: str
    finish_reason: FinishReason
    stop_string: str = ""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()


class ChatModel(Protocol):
    """A model one can talk to: local weights, a remote endpoint, or a script.

    `stream` and `stream_text` check the request before they return, so a bad one raises there and
    not at the first piece. Where the iterator has a `cancel()`, any thread may call it to end the
    generation; all of them end it when they are closed or collected.
    """

    name: str

    def complete(self, messages: Messages, **sampling: Any) -> Completion:
        """Answer a conversation. Raises: UserError for a bad setting or too long a prompt."""
        ...

    def stream(self, messages: Messages, **sampling: Any) -> Iterator[Delta]:
        """As `complete`, piece by piece."""
        ...

    def complete_text(self, prompt: str | Sequence[int], **sampling: Any) -> Completion:
        """Continue raw text (or token ids, where the model is local); no template is applied."""
        ...

    def stream_text(self, prompt: str | Sequence[int], **sampling: Any) -> Iterator[Delta]:
        """As `complete_text`, piece by piece."""
        ...


def collect(deltas: Iterator[Delta], *, logprobs: bool = False) -> Completion:
    """Read a stream to its end. A source that never counted tokens gives zero for both counts."""
    pieces = list(deltas)
    usage = next((d.usage for d in reversed(pieces) if d.usage), None)
    reasons: list[FinishReason] = [d.finish_reason for d in pieces if d.finish_reason]
    return Completion(
        text="".join(d.text for d in pieces),
        finish_reason=reasons[-1] if reasons else "stop",
        stop_string=next((d.stop_string for d in pieces if d.stop_string), ""),
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        cached_tokens=usage.cached_tokens if usage else 0,
        proposed_tokens=usage.proposed_tokens if usage else 0,
        accepted_tokens=usage.accepted_tokens if usage else 0,
        logprobs=tuple(entry for d in pieces for entry in d.logprobs) if logprobs else None,
        tool_calls=_joined(piece for d in pieces for piece in d.tool_calls),
    )


def _joined(pieces: Iterable[ToolCallDelta]) -> tuple[ToolCall, ...]:
    """Whole calls out of their pieces, by index."""
    calls: dict[int, ToolCall] = {}
    for piece in pieces:
        call = calls.get(piece.index) or ToolCall(id="", name="", arguments="")
        calls[piece.index] = ToolCall(
            id=call.id or piece.id,
            name=call.name or piece.name,
            arguments=call.arguments + piece.arguments,
            problem=call.problem or piece.problem,
        )
    return tuple(calls[index] for index in sorted(calls))
