"""A stream of text as a stream of text and calls of tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from lmworks.inference.base import Delta, ToolCallDelta
from lmworks.inference.tool_formats import ToolFormat
from lmworks.inference.tool_parser import ToolCallParser
from lmworks.inference.tools import ToolUse


class ToolStream(Iterator[Delta]):
    """The deltas of `stream`, with what is a call taken out of the text.

    Where one call was asked for, the stream ends with it.
    """

    def __init__(self, stream: Any, use: ToolUse, form: ToolFormat) -> None:
        self._stream = stream
        self._parser = ToolCallParser(use, form)
        self._ended = False
        if hasattr(stream, "on_ready"):  # each of its pieces is one of ours
            self.on_ready = stream.on_ready

    def ready(self) -> bool:
        """See `Stream.ready`; there where the stream beneath has `on_ready`."""
        return self._ended or self._stream.ready()

    def __iter__(self) -> ToolStream:
        return self

    def __next__(self) -> Delta:
        if self._ended:
            raise StopIteration
        delta = next(self._stream)
        pieces = self._parser.push(delta.text)
        if delta.finish_reason:
            pieces += self._parser.finish()
        reason, usage = delta.finish_reason, delta.usage
        if self._parser.complete and reason is None:
            reason, usage = "stop", getattr(self._stream, "usage", None)
            self.cancel()
        if reason == "stop" and self._parser.num_calls:
            reason = "tool_calls"
        self._ended = reason is not None
        return dataclasses.replace(
            delta,
            text="".join(piece for piece in pieces if isinstance(piece, str)),
            tool_calls=_by_index(piece for piece in pieces if isinstance(piece, ToolCallDelta)),
            finish_reason=reason,
            usage=usage,
        )

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt, or 0 where the source does not tell."""
        return int(getattr(self._stream, "prompt_tokens", 0))

    def cancel(self) -> None:
        """End the generation, from any thread."""
        self._stream.cancel()


def _by_index(pieces: Iterable[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    """One piece a call: clients put the calls of a delta in places of a list."""
    joined: dict[int, ToolCallDelta] = {}
    for piece in pieces:
        before = joined.get(piece.index, ToolCallDelta(index=piece.index))
        joined[piece.index] = ToolCallDelta(
            index=piece.index,
            id=before.id or piece.id,
            name=before.name or piece.name,
            arguments=before.arguments + piece.arguments,
            problem=before.problem or piece.problem,
        )
    return tuple(joined.values())
