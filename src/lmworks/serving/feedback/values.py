"""What was said of one answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lmworks.core.errors import UserError

Thumb = Literal["up", "down"]
RATINGS: dict[str, int] = {"up": 1, "down": -1}
MAX_COMMENT = 4000  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feedback:
    """An answer, what came before it, and what somebody thinks of it.

    Attributes:
        source: who says so: a conversation (`chat:ID`), a client, or a line of a file.
        prompt: the messages before the answer, each with `role` and `content`.
        rating: 1 liked, -1 disliked, 0 neither was said.
        correction: what the answer should have been; "" where nobody said.
    """

    id: str
    source: str
    prompt: tuple[Mapping[str, str], ...]
    answer: str
    rating: int = 0
    correction: str = ""
    comment: str = ""
    model: str = ""

    @property
    def question(self) -> str:
        """The first thing that a person said."""
        return next((m["content"] for m in self.prompt if m["role"] == "user"), "")

    @property
    def texts(self) -> tuple[str, ...]:
        """All that a model would be shown or taught."""
        return (*(m["content"] for m in self.prompt), self.answer, self.correction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vote:
    """A thumb on a stored message."""

    rating: int
    comment: str = ""

    @property
    def thumb(self) -> str:
        """As the API says it."""
        return "up" if self.rating > 0 else "down"


def checked(
    where: str,
    *,
    prompt: Sequence[Mapping[str, Any]],
    answer: str,
    rating: Any,
    correction: str,
    comment: str,
) -> int:
    """The rating as a number. Raises: UserError for feedback that says nothing, or of nothing."""
    if rating is None:
        number = 0
    elif isinstance(rating, str) and rating in RATINGS:
        number = RATINGS[rating]
    elif isinstance(rating, int) and not isinstance(rating, bool) and rating in (1, -1):
        number = rating
    else:
        raise UserError(f"{where}rating: must be up or down (1 or -1), not {str(rating)[:40]!r}")
    if not any(m["role"] == "user" and m["content"].strip() for m in prompt):
        raise UserError(f"{where}messages: no message of a user, so there was nothing to answer")
    if not answer.strip():
        raise UserError(f"{where}answer: is empty: what is it that is judged?")
    if not number and not correction.strip():
        raise UserError(f"{where}says nothing: give a rating, a correction, or both")
    if len(comment) > MAX_COMMENT:
        raise UserError(f"{where}comment: over {MAX_COMMENT:,} characters")
    return number
