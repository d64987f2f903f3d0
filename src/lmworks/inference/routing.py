"""A router: several chat models as one, of which one answers each request.

Which one is decided by the last message of the user (or by the text that is to be continued): by
expressions that are searched for in it, in order, or by which model reads it most cheaply, in bits
per byte. Members need not share a vocabulary, and may lie behind an endpoint where only expressions
decide.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from lmworks.core.errors import UserError
from lmworks.inference.base import ChatModel, Completion, Delta, Messages
from lmworks.inference.local import LocalChat
from lmworks.models.ensemble_spec import EnsembleSpec

_MOST_TOKENS = 512  # of a text that is read to choose
_MOST_CHARACTERS = 20_000  # in which expressions are searched for


class RoutedChat:
    """See above; a `ChatModel`.

    Attributes:
        members: in the order of the spec.
        routed: how many requests went to each, by number.
    """

    def __init__(self, members: Sequence[ChatModel], spec: EnsembleSpec, name: str) -> None:
        self.members, self.spec, self.name = list(members), spec, name
        self.routed: Counter[int] = Counter()
        self._expressions = [re.compile(m.when) if m.when else None for m in spec.models]

    def complete(self, messages: Messages, **sampling: Any) -> Completion:
        """See `ChatModel.complete`."""
        return self._member(_last_words(messages)).complete(messages, **sampling)

    def stream(self, messages: Messages, **sampling: Any) -> Iterator[Delta]:
        """See `ChatModel.stream`."""
        return self._member(_last_words(messages)).stream(messages, **sampling)

    def complete_text(self, prompt: str | Sequence[int], **sampling: Any) -> Completion:
        """See `ChatModel.complete_text`. Raises: UserError for token ids."""
        return self._member(_as_text(prompt)).complete_text(prompt, **sampling)

    def stream_text(self, prompt: str | Sequence[int], **sampling: Any) -> Iterator[Delta]:
        """See `ChatModel.stream_text`. Raises: UserError for token ids."""
        return self._member(_as_text(prompt)).stream_text(prompt, **sampling)

    def count_tokens(self, messages: Messages, **settings: Any) -> int:
        """The length of a conversation's prompt for the member that would answer it.

        Raises: UserError for an endpoint, where only the other side could tell.
        """
        number = self.choose(_last_words(messages))
        count = getattr(self.members[number], "count_tokens", None)
        if count is None:
            name = self.spec.models[number].model
            raise UserError(f"the tokens of {name!r} can't be counted: it is not local")
        found: int = count(messages, **settings)
        return found

    def close(self) -> None:
        """Close all members."""
        for member in self.members:
            with contextlib.suppress(AttributeError):
                member.close()  # type: ignore[attr-defined]

    def _member(self, text: str) -> ChatModel:
        number = self.choose(text)
        self.routed[number] += 1
        return self.members[number]

    def choose(self, text: str) -> int:
        """The number of the member that answers a request which ends in `text`."""
        if self.spec.combine == "perplexity":
            costs = [bits_per_byte(member, text) for member in self.members]
            return min(range(len(costs)), key=costs.__getitem__)
        searched = text[-_MOST_CHARACTERS:]
        for number, expression in enumerate(self._expressions):
            if expression is None or expression.search(searched):
                return number
        raise AssertionError("the last member takes what is left")


def bits_per_byte(member: ChatModel, text: str) -> float:
    """What a text costs a local model, bits per byte of UTF-8; only its beginning is read."""
    import numpy as np

    from lmworks.inference.logprobs import decoder_logprobs

    assert isinstance(member, LocalChat)
    tokenizer = member.engine.tokenizer
    ids = tokenizer.encode(text)[:_MOST_TOKENS]
    if not ids:
        return 0.0
    read = len(tokenizer.decode(ids).encode())
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    row = np.array(ids if first is None else [first, *ids], dtype=np.int64)
    (found,) = decoder_logprobs(member.engine.model)([row])
    return float(-found.sum()) / math.log(2) / max(read, 1)


def _last_words(messages: Messages) -> str:
    """The text of the last message of the user."""
    for message in reversed(list(messages)):
        content = message.get("content")
        if message.get("role") == "user" and isinstance(content, str):
            return content
    return ""


def _as_text(prompt: str | Sequence[int]) -> str:
    if not isinstance(prompt, str):
        raise UserError("a router chooses by the text: give text, not token ids")
    return prompt
