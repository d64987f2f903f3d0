"""A `ChatModel` over weights on this machine: template, tokens, engine, text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.inference.base import Completion, Delta, Messages, Usage, collect
from lmworks.inference.sampling import MAX_STOPS, Sampling
from lmworks.inference.streams import Stream

if TYPE_CHECKING:
    from lmworks.inference.engine import Engine

# A base model goes on with the other's turn; this is where that begins.
_FALLBACK_STOP = "\nUser:"


class LocalChat:
    """Weights on this machine, behind an engine that several conversations may share.

    A base model without a chat template gets a plain one, in which each message is
    `Role: content` and a blank line, and the answer follows `Assistant:` and ends where the model
    writes a new line with `User:`.
    """

    def __init__(self, engine: Engine, name: str = "local") -> None:
        self.engine, self.name = engine, name

    def complete(self, messages: Messages, **sampling: Any) -> Completion:
        """See `ChatModel.complete`."""
        return collect(self.stream(messages, **sampling), logprobs=_wants_logprobs(sampling))

    def stream(self, messages: Messages, **sampling: Any) -> LocalStream:
        """See `ChatModel.stream`."""
        tokenizer = self.engine.tokenizer
        if tokenizer.chat_template:
            prompt_ids = tokenizer.encode_chat(messages, add_generation_prompt=True)
            return self._submit(prompt_ids, sampling)
        stops = Sampling.of(sampling).stops
        sampling = {**sampling, "stop": (*stops[: MAX_STOPS - 1], _FALLBACK_STOP)}
        return self._submit(tokenizer.encode(plain_prompt(messages)), sampling, strip_start=True)

    def complete_text(self, prompt: str | Sequence[int], **sampling: Any) -> Completion:
        """Continue raw text. An empty one begins with the token that begins documents."""
        return collect(self.stream_text(prompt, **sampling), logprobs=_wants_logprobs(sampling))

    def stream_text(self, prompt: str | Sequence[int], **sampling: Any) -> LocalStream:
        """As `complete_text`, piece by piece."""
        tokenizer = self.engine.tokenizer
        prompt_ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        first = tokenizer.bos_token_id
        if not prompt_ids and first is not None:
            prompt_ids = [first]
        return self._submit(prompt_ids, sampling)

    def count_tokens(self, messages: Messages) -> int:
        """The length of the prompt that a conversation becomes, in tokens."""
        tokenizer = self.engine.tokenizer
        if tokenizer.chat_template:
            return len(tokenizer.encode_chat(messages, add_generation_prompt=True))
        return len(tokenizer.encode(plain_prompt(messages)))

    def _submit(
        self, prompt_ids: Sequence[int], sampling: dict[str, Any], *, strip_start: bool = False
    ) -> LocalStream:
        settings = Sampling.of(sampling)
        return LocalStream(self.engine.submit(prompt_ids, settings), strip_start=strip_start)

    def close(self) -> None:
        """End the engine."""
        self.engine.close()


class LocalStream(Iterator[Delta]):
    """Deltas out of an engine's stream. Dropping it ends the generation."""

    def __init__(self, stream: Stream, *, strip_start: bool = False) -> None:
        self._stream = stream
        self._strip_start = strip_start  # the blank after "Assistant:" is not the answer's
        self._completion_tokens = 0

    def __iter__(self) -> LocalStream:
        return self

    def __next__(self) -> Delta:
        event = next(self._stream)
        self._completion_tokens += 1
        text = event.text.lstrip() if self._strip_start else event.text
        self._strip_start = self._strip_start and not text
        usage = None
        if event.finish_reason:
            usage = Usage(
                prompt_tokens=self._stream.prompt_tokens,
                completion_tokens=self._completion_tokens,
                cached_tokens=self._stream.cached_tokens,
            )
        return Delta(
            text=text,
            finish_reason=event.finish_reason,
            stop_string=event.stop_string,
            usage=usage,
            logprobs=(event.logprob,) if event.logprob else (),
        )

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt."""
        return self._stream.prompt_tokens

    def cancel(self) -> None:
        """End the generation, from any thread."""
        self._stream.cancel()

    def __del__(self) -> None:
        self._stream.cancel()


def plain_prompt(messages: Messages) -> str:
    """The fallback template, see `LocalChat`. Raises: UserError for a message without text."""
    turns = []
    for index, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(f"messages[{index}]: needs a role and a content, both text")
        turns.append(f"{role.capitalize()}: {content}\n\n")
    return "".join(turns) + "Assistant:"


def _wants_logprobs(sampling: dict[str, Any]) -> bool:
    return sampling.get("logprobs") is not None
