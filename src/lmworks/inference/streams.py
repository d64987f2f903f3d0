"""What `Engine.submit` gives back: one request's tokens as they come, from another thread."""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Callable, Iterator

from lmworks.core.errors import UserError
from lmworks.inference.base import FinishReason, TokenLogprob

MOST_UNREAD = 2048  # tokens that wait for a reader


class PromptTooLong(UserError):
    """The prompt leaves no room in the context for a single new token."""

    def __init__(self, prompt_tokens: int, max_positions: int) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens} tokens and the context holds {max_positions}, "
            f"one of them for the answer: shorten the prompt to {max_positions - 1}"
        )
        self.prompt_tokens, self.max_positions = prompt_tokens, max_positions


class QueueFull(UserError):
    """As many requests wait as the engine lets wait."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests are waiting already: try again later")


class EngineClosed(UserError):
    """The engine was closed while the request waited or ran."""

    def __init__(self) -> None:
        super().__init__("the engine is closed")


class DeadlineExceeded(UserError):
    """The request's time was over before its answer was."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the answer was not ready within {timeout_s:g} s")


class GenerationError(RuntimeError):
    """A step failed; the cause is chained. Only the requests of that step are lost."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """One produced token. `text` is what may be shown after it: empty while a character or a
    possible stop string is unfinished. The last event has the `finish_reason`."""

    token_id: int
    text: str
    finish_reason: FinishReason | None = None
    stop_string: str = ""
    logprob: TokenLogprob | None = None


def _nobody() -> None:
    """Who is woken where nobody listens."""


class Stream(Iterator[TokenEvent]):
    """The tokens of one request. Iterate from one thread; `cancel` from any.

    A reader that stays behind does not fill the memory: with MOST_UNREAD tokens unread the stream
    is full, and the request pauses until half of them are read.

    Attributes:
        cached_tokens: of the prompt's, those that did not have to be read; known with the first
            token.
        proposed_tokens, accepted_tokens: of speculation, so far.
    """

    def __init__(
        self,
        prompt_tokens: int,
        on_cancel: Callable[[], None],
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self.prompt_tokens, self.cached_tokens = prompt_tokens, 0
        self.proposed_tokens = self.accepted_tokens = 0
        self.cancelled = self._paused = False
        self._on_cancel, self._on_room = on_cancel, on_room
        self._events: queue.SimpleQueue[TokenEvent | Exception | None] = queue.SimpleQueue()
        self._ended = False
        self._wake: Callable[[], None] = _nobody

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> TokenEvent:
        """The next token. Raises: StopIteration at the end and after a cancel; GenerationError,
        DeadlineExceeded or EngineClosed when the engine could not go on."""
        if self._ended or self.cancelled:
            raise StopIteration
        event = self._events.get()
        if self._events.qsize() == MOST_UNREAD // 2:
            self._on_room()
        if event is None or isinstance(event, Exception):
            self._ended = True
            raise event or StopIteration
        self._ended = event.finish_reason is not None
        return event

    def cancel(self) -> None:
        """End the request: a waiting iterator ends at once, the slot is free after the step that
        is under way. Again, or after the end: nothing."""
        if not self.cancelled:
            self.cancelled = True
            self._events.put(None)
            self._wake()
            self._on_cancel()

    def put(self, event: TokenEvent | Exception) -> None:
        """The engine's end."""
        self._events.put(event)
        self._wake()

    def on_ready(self, wake: Callable[[], None]) -> None:
        """Call `wake`, from any thread and at once if it is so already, whenever it may be that
        `ready()`: for readers that must not block."""
        self._wake = wake
        if self.ready():
            wake()

    def ready(self) -> bool:
        """Whether `next` would return, or raise, without waiting."""
        return self._ended or self.cancelled or not self._events.empty()

    def is_full(self) -> bool:
        """Whether the request has to wait for its reader; asked by the engine's thread alone."""
        unread = self._events.qsize()
        self._paused = unread >= MOST_UNREAD or (self._paused and unread > MOST_UNREAD // 2)
        return self._paused
