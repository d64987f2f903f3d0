"""Token ids to text that a client may see: whole characters, and never a part of a stop string.

A stop string may begin in one token and end in another, so the longest end of the text that could
still become one is held back until the next token decides. Special tokens carry no text.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Protocol


class StreamDecoder(Protocol):
    """What `Tokenizer.stream_decoder()` gives."""

    def push(self, token_id: int, /) -> str:
        """The text that this token completes."""
        ...

    def finish(self) -> str:
        """What is left of an unfinished character."""
        ...


class StopMatcher:
    """Finds the first of some stop strings in text that comes in pieces.

    Where two begin at different places the earlier one counts, as if the text had come whole.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = ""  # the stop string that was met

    @property
    def stopped(self) -> bool:
        """A stop string was met."""
        return bool(self.matched)

    def push(self, text: str) -> str:
        """The text that is now safe to show. After a match: what came before it, then nothing."""
        if self.stopped or not text:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = self._found()
        keep_from = self._first_possible()
        if found and min(found)[0] <= keep_from:
            keep_from, self.matched = min(found)
        safe, self._held = self._held[:keep_from], self._held[keep_from:]
        return safe

    def finish(self) -> str:
        """What was held back, when no more text comes. A match that waited for an earlier one to
        be decided is taken now."""
        found = self._found()
        held, self._held = self._held, ""
        if self.stopped:
            return ""
        if not found:
            return held
        at, self.matched = min(found)
        return held[:at]

    def _found(self) -> list[tuple[int, str]]:
        """Where in the text that is held back each stop string begins, of those that are in it."""
        return [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]

    def _first_possible(self) -> int:
        """Where the earliest beginning of an unfinished stop string stands, else the end."""
        held = self._held
        first = max(0, len(held) - max(map(len, self._stops)) + 1)
        for at in range(first, len(held)):
            if any(stop.startswith(held[at:]) for stop in self._stops):
                return at
        return len(held)


class OutputText:
    """One request's text: decoder and stop strings in a row."""

    def __init__(
        self, decoder: StreamDecoder, stops: Sequence[str], special_ids: Container[int]
    ) -> None:
        self._decoder, self._special_ids = decoder, special_ids
        self._matcher = StopMatcher(stops)

    @property
    def stopped(self) -> bool:
        """A stop string was met."""
        return self._matcher.stopped

    @property
    def stop_string(self) -> str:
        """Which one; "" if none was."""
        return self._matcher.matched

    def push(self, token_id: int) -> str:
        """The text to show after this token; may be empty."""
        if token_id in self._special_ids:
            return ""
        return self._matcher.push(self._decoder.push(token_id))

    def finish(self) -> str:
        """The rest; whether it ran into a stop string shows in `stopped`."""
        return self._matcher.push(self._decoder.finish()) + self._matcher.finish()
