"""A turn: one checked request for an answer, of whatever API, and its answer while it is made.

An API is a `Turn` (what to ask the model) and a `Reply` (how to say what it answers). Streamed over
HTTP, sent through a WebSocket, kept for a client that lost its connection, or whole: the same
`Running` is behind it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from lmworks.inference.base import ChatModel, Completion, Delta, collect
from lmworks.inference.sampling import InvalidParameter
from lmworks.inference.streams import PromptTooLong
from lmworks.serving.errors import ApiError, as_api_error
from lmworks.serving.generation import Generation, Opener
from lmworks.serving.streaming import Event

Options = Mapping[str, Any]


class Reply(Protocol):
    """Says an answer in the words of an API."""

    id: str

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The answer in one piece; one completion per stream that the turn opened."""
        ...

    def events(
        self, deltas: AsyncIterator[tuple[int, Delta]], prompt_tokens: int
    ) -> AsyncGenerator[Event, None]:
        """The answer piece by piece, the terminator included.

        Args:
            deltas: (number of the stream, its next piece).
            prompt_tokens: as far as it is known before the end; else 0.
        """
        ...

    def failed(self, error: ApiError) -> Event:
        """The last event of an answer that could not be finished."""
        ...


class Turn(Protocol):
    """What an API asks of a model."""

    @property
    def model(self) -> str:
        """Its name."""
        ...

    @property
    def stream(self) -> bool | None:
        """Whether the client wants events."""
        ...

    @property
    def resumable(self) -> bool:
        """Whether the answer goes on while the client is away."""
        ...

    def openers(self, model: ChatModel, options: Options) -> list[Opener]:
        """What opens the stream of each choice, with settings that are no sampling beside.

        Raises: ApiError for a request that the model or the API can't serve.
        """
        ...

    def reply(self) -> Reply:
        """What says the answer."""
        ...

    def own_name(self, param: str) -> str:
        """What the client calls a setting of `Sampling`, or the prompt (`messages`)."""
        ...

    def traced(self) -> Mapping[str, Any]:
        """The operation (`gen_ai.operation.name`) and settings, as attributes of a span."""
        ...


class Watch(Protocol):
    """Is told what happens to a turn."""

    def saw(self, index: int, delta: Delta) -> None:
        """A piece of stream `index`."""
        ...

    def end(self, error: BaseException | None) -> None:
        """It is over."""
        ...


class Running:
    """A turn that is being answered. Made by `Service.start`; `end` it, however it ends."""

    def __init__(
        self,
        turn: Turn,
        generation: Generation,
        watches: Sequence[Watch],
        on_end: Callable[[], None],
    ) -> None:
        self.turn, self.reply = turn, turn.reply()
        self._generation, self._watches, self._on_end = generation, watches, on_end
        self._error: BaseException | None = None
        self._ended = False

    async def open(self) -> None:
        """Start it. Raises: ApiError, after which it is over."""
        try:
            await self._generation.open()
        except Exception as error:
            failure = in_own_words(self.turn, error)
            self.end(failure)
            raise failure from error
        except BaseException as error:
            self.end(error)
            raise

    async def events(self) -> AsyncGenerator[Event, None]:
        """The answer as events; an error is the last one."""
        try:
            async with (
                contextlib.aclosing(self._watched()) as deltas,
                contextlib.aclosing(
                    self.reply.events(deltas, self._generation.prompt_tokens)
                ) as events,
            ):
                async for event in events:
                    yield event
        except Exception as error:
            self._error = failure = in_own_words(self.turn, error)
            yield self.reply.failed(failure)

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece. Raises: ApiError."""
        pieces: list[list[Delta]] = [[] for _ in range(self._generation.num_streams)]
        try:
            async with contextlib.aclosing(self._watched()) as deltas:
                async for index, delta in deltas:
                    pieces[index].append(delta)
            return self.reply.whole(
                [collect(iter(each), logprobs=any(d.logprobs for d in each)) for each in pieces]
            )
        except Exception as error:
            self._error = failure = in_own_words(self.turn, error)
            raise failure from error

    def cancel(self, error: Exception | None = None) -> None:
        """End the generation; who reads gets `error` as the last event."""
        self._generation.cancel(error)

    def end(self, error: BaseException | None = None) -> None:
        """It is over, or nobody listens any more. Again: nothing."""
        if not self._ended:
            self._ended = True
            self._generation.cancel()
            for watch in self._watches:
                watch.end(error or self._error)
            self._on_end()

    async def _watched(self) -> AsyncGenerator[tuple[int, Delta], None]:
        async for index, delta in self._generation:
            for watch in self._watches:
                watch.saw(index, delta)
            yield index, delta


def in_own_words(turn: Turn, error: Exception) -> ApiError:
    """An error with the parameter named as the client named it."""
    failure = as_api_error(error)
    if isinstance(error, PromptTooLong):
        return failure.about(turn.own_name("messages"))
    if isinstance(error, InvalidParameter):
        return failure.about(turn.own_name(error.param))
    return failure
