"""Guess that what followed the same words before follows again.

The last few tokens are looked up in the text so far, the longest beginning first and the latest
place first; what followed there is the guess. It costs no model, and keeps much where an answer
repeats its question: summaries, edits of code, answers out of a document, JSON.

Source: Saxena 2023, prompt lookup decoding; Yang et al. 2023, arXiv 2304.04487 (copies from
references).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmworks.core.errors import UserError
from lmworks.inference.speculative import Guess

if TYPE_CHECKING:
    from lmworks.inference.engine import Engine
    from lmworks.inference.scheduler import Request

LONGEST, SHORTEST = 5, 2  # tokens that must agree


class PromptLookup:
    """The source `lookup`."""

    instant = True
    guess_s = 0.0
    num_bytes = 0

    def __init__(self) -> None:
        self._texts: dict[Request, _Places] = {}

    @classmethod
    def of(cls, engine: Engine, value: str = "") -> PromptLookup:
        """Raises: UserError for a value: it takes none."""
        if value:
            raise UserError(f"--speculate lookup takes no value, not {value!r}")
        return cls()

    def guess(self, requests: Sequence[Request], most: Sequence[int]) -> list[Guess]:
        """See `Source`."""
        return [self._guess(request, room) for request, room in zip(requests, most, strict=True)]

    def _guess(self, request: Request, most: int) -> Guess:
        ids = request.token_ids
        places = self._texts.setdefault(request, _Places())
        places.read(ids)
        found = places.find(ids)
        if found is None or not most:
            return Guess()
        size, at = found
        following = ids[at : at + most]
        allowed = getattr(request.grammar, "valid_prefix", None)
        if allowed is not None:
            following = following[: allowed(following)]
        return Guess(following, kind=size)

    def ended(self, request: Request) -> None:
        """See `Source`."""
        self._texts.pop(request, None)


class _Places:
    """Where runs of tokens stand in a text that grows: the index behind the latest of each."""

    def __init__(self) -> None:
        self._latest: dict[tuple[int, ...], int] = {}
        self._read = 0

    def read(self, ids: Sequence[int]) -> None:
        """Take in what is new. The run at the very end is left: nothing follows it yet."""
        for end in range(max(self._read, SHORTEST), len(ids)):
            for size in range(SHORTEST, min(LONGEST, end) + 1):
                self._latest[tuple(ids[end - size : end])] = end
        self._read = max(self._read, len(ids))

    def find(self, ids: Sequence[int]) -> tuple[int, int] | None:
        """(size, place behind it) of the longest end of the text that stood there before."""
        for size in range(min(LONGEST, len(ids) - 1), SHORTEST - 1, -1):
            at = self._latest.get(tuple(ids[-size:]))
            if at is not None:
                return size, at
        return None
