"""A `ChatModel` that says what it is told to: for tests of everything that talks to a model."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmworks.inference.base import Completion, Delta, FinishReason, Messages, Usage, collect
from lmworks.inference.sampling import Sampling
from lmworks.inference.settings import Settings
from lmworks.inference.stopping import StopMatcher
from lmworks.inference.tool_formats import PLAIN
from lmworks.inference.tool_stream import ToolStream

Answer = Callable[[Messages], str]


class ScriptedChat:
    """Gives `answers` in turn, from the first again after the last; or calls one to get them.

    A word with the blanks before it counts as a token, of the prompt and of the answer, so
    `max_tokens` and `stop` mean what they mean elsewhere. Calls of tools are read in the answer
    where the request has some; the other settings are only checked.

    Args:
        delay_s: seconds before each piece, for a stream that one can watch and stop.
    """

    def __init__(
        self, answers: Sequence[str] | Answer, *, name: str = "scripted", delay_s: float = 0.0
    ) -> None:
        self.name = name
        self._delay_s = delay_s
        self._script = None if callable(answers) else itertools.cycle(answers)
        self._answer = answers if callable(answers) else None
        self._lock = threading.Lock()

    def complete(self, messages: Messages, **sampling: Any) -> Completion:
        """See `ChatModel.complete`."""
        return collect(self.stream(messages, **sampling))

    def stream(self, messages: Messages, **sampling: Any) -> ScriptedStream | ToolStream:
        """See `ChatModel.stream`."""
        request = Settings.of(sampling)
        with self._lock:
            answer = self._answer(messages) if self._answer else next(self._script or iter(()))
        prompt = " ".join(str(message.get("content", "")) for message in messages)
        stream = ScriptedStream(answer, request.sampling, len(_pieces(prompt)), self._delay_s)
        return ToolStream(stream, request.tools, PLAIN) if request.tools else stream

    def count_tokens(self, messages: Messages, **settings: Any) -> int:
        """The words of a conversation."""
        Settings.of(settings)
        return len(_pieces(" ".join(str(message.get("content", "")) for message in messages)))

    def complete_text(self, prompt: str | Sequence[int], **sampling: Any) -> Completion:
        """The next answer, as in `complete`."""
        return collect(self.stream_text(prompt, **sampling))

    def stream_text(
        self, prompt: str | Sequence[int], **sampling: Any
    ) -> ScriptedStream | ToolStream:
        """The next answer, piece by piece."""
        return self.stream([{"role": "user", "content": prompt}], **sampling)


class ScriptedStream(Iterator[Delta]):
    """An answer's words, one at a time."""

    def __init__(self, answer: str, settings: Sampling, prompt_tokens: int, delay_s: float) -> None:
        pieces = _pieces(answer)
        kept = pieces[: settings.max_tokens]
        self._reason: FinishReason = "stop" if len(kept) == len(pieces) else "length"
        self._pieces = iter(kept)
        self._matcher = StopMatcher(settings.stops)
        self.prompt_tokens, self._completion_tokens = prompt_tokens, 0
        self._delay_s = delay_s
        self._cancelled = threading.Event()
        self._ended = False

    def __iter__(self) -> ScriptedStream:
        return self

    def __next__(self) -> Delta:
        if self._ended or self._cancelled.wait(self._delay_s):
            raise StopIteration
        piece = None if self._matcher.stopped else next(self._pieces, None)
        if piece is not None:
            self._completion_tokens += 1
            return Delta(text=self._matcher.push(piece))
        self._ended = True
        text = self._matcher.finish()
        usage = Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self._completion_tokens)
        reason: FinishReason = "stop" if self._matcher.stopped else self._reason
        stop = self._matcher.matched
        return Delta(text=text, finish_reason=reason, stop_string=stop, usage=usage)

    def cancel(self) -> None:
        """End the stream, from any thread."""
        self._cancelled.set()


def _pieces(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)
