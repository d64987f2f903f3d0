"""A `ChatModel` over weights on this machine: template, tokens, engine, text."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.inference.base import Completion, Delta, Messages, Usage, collect
from lmworks.inference.grammar_tokens import GrammarCompiler
from lmworks.inference.sampling import MAX_STOPS, InvalidParameter
from lmworks.inference.settings import REQUEST_SETTINGS, Settings
from lmworks.inference.streams import Stream
from lmworks.inference.tool_formats import format_of
from lmworks.inference.tool_grammar import tool_grammar
from lmworks.inference.tool_stream import ToolStream
from lmworks.inference.tools import ToolUse, for_template

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

    request_options = REQUEST_SETTINGS  # beside those of the answer: what the engine takes

    def __init__(self, engine: Engine, name: str = "local") -> None:
        self.engine, self.name = engine, name
        self._compiler: GrammarCompiler | None = None
        self._lock = threading.Lock()

    def complete(self, messages: Messages, **sampling: Any) -> Completion:
        """See `ChatModel.complete`."""
        return collect(self.stream(messages, **sampling), logprobs=_wants_logprobs(sampling))

    def stream(self, messages: Messages, **settings: Any) -> LocalStream | ToolStream:
        """See `ChatModel.stream`. Raises: MissingExtra for a form that needs `llguidance`."""
        request = Settings.of(settings)
        tokenizer, use = self.engine.tokenizer, request.tools
        prompt_ids = self._prompt_ids(messages, use)
        if not tokenizer.chat_template:
            stops = (*request.sampling.stops[: MAX_STOPS - 1], _FALLBACK_STOP)
            sampling = dataclasses.replace(request.sampling, stop=stops)
            request = dataclasses.replace(request, sampling=sampling)
        strip_start = not tokenizer.chat_template
        if use is None:
            return self._submit(prompt_ids, request, strip_start=strip_start)
        _, form = format_of(tokenizer.chat_template)
        held = tool_grammar(use, form, tokenizer.special_tokens, request.grammar)
        request = dataclasses.replace(request, grammar=held)
        marks = form.begin + form.end + form.name_end
        shown = {i: text for text, i in tokenizer.special_tokens.items() if text and text in marks}
        stream = self._submit(prompt_ids, request, shown=shown, strip_start=strip_start)
        return ToolStream(stream, use, form)

    def _prompt_ids(self, messages: Messages, use: ToolUse | None) -> list[int]:
        """The conversation and the tools through the chat template, or the plain one."""
        tokenizer = self.engine.tokenizer
        family, _ = format_of(tokenizer.chat_template)
        messages = for_template(messages, use, knows_tools=bool(family))
        if not tokenizer.chat_template:
            return list(tokenizer.encode(plain_prompt(messages)))
        told = {"tools": use.definitions} if use and family else {}
        return list(tokenizer.encode_chat(messages, add_generation_prompt=True, **told))

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
        request = Settings.of(sampling)
        if request.tools:
            raise InvalidParameter("tools", "a raw text has no tools: they belong to a chat")
        return self._submit(prompt_ids, request)

    def count_tokens(self, messages: Messages, **settings: Any) -> int:
        """The length of the prompt that a conversation becomes, in tokens; tools are part of it."""
        return len(self._prompt_ids(messages, Settings.of(settings).tools))

    def _submit(self, prompt_ids: Sequence[int], request: Settings, **options: Any) -> LocalStream:
        to_engine = dict(request.to_engine)
        if request.grammar:
            to_engine["grammar"] = self._grammars().start(request.grammar)
        stream = self.engine.submit(prompt_ids, request.sampling, **to_engine)
        return LocalStream(stream, **options)

    def _grammars(self) -> GrammarCompiler:
        with self._lock:
            if self._compiler is None:
                engine = self.engine
                self._compiler = GrammarCompiler(
                    engine.tokenizer, engine.eos_token_ids, engine.vocab_size
                )
            return self._compiler

    def close(self) -> None:
        """End the engine."""
        self.engine.close()


class LocalStream(Iterator[Delta]):
    """Deltas out of an engine's stream. Dropping it ends the generation.

    Args:
        strip_start: leave out blanks at the start.
        shown: texts of special tokens that are to be seen all the same, by id.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        strip_start: bool = False,
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self._stream = stream
        self._shown = shown or {}
        self._strip_start = strip_start  # the blank after "Assistant:" is not the answer's
        self._completion_tokens = 0

    def __iter__(self) -> LocalStream:
        return self

    def __next__(self) -> Delta:
        event = next(self._stream)
        self._completion_tokens += 1
        text = event.text.lstrip() if self._strip_start else event.text
        text = self._shown.get(event.token_id, "") + text
        self._strip_start = self._strip_start and not text
        return Delta(
            text=text,
            finish_reason=event.finish_reason,
            stop_string=event.stop_string,
            usage=self.usage if event.finish_reason else None,
            logprobs=(event.logprob,) if event.logprob else (),
        )

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt."""
        return self._stream.prompt_tokens

    @property
    def usage(self) -> Usage:
        """What it has cost so far."""
        return Usage(
            prompt_tokens=self._stream.prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self._stream.cached_tokens,
            proposed_tokens=self._stream.proposed_tokens,
            accepted_tokens=self._stream.accepted_tokens,
        )

    def on_ready(self, wake: Callable[[], None]) -> None:
        """See `Stream.on_ready`."""
        self._stream.on_ready(wake)

    def ready(self) -> bool:
        """See `Stream.ready`."""
        return self._stream.ready()

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
