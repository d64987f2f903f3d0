"""Where in a rendered chat each text of a message stands, by marks around it.

The messages are rendered once more with characters around their texts that occur nowhere else, and
what is between them is where the text went, however the template orders and trims. Where marks
would change what the template does, nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lmworks.core.errors import UserError

_FIRST_MARK, _MOST_MARKS = 0xF0000, 30_000  # a plane of characters for private use
_MARK = re.compile("[\U000f0000-\U000ffffd]")
NOT_CONTENT = ("role", "tool_call_id", "id", "type")


class Written(NamedTuple):
    """Characters `start` up to `end` of the rendered text are a text of message `message`."""

    start: int
    end: int
    message: int
    key: str  # of the message: content, tool_calls, reasoning_content...


def find_written(
    text: str, messages: Sequence[Mapping[str, Any]], render: Callable[[list[Any]], str]
) -> list[Written] | None:
    """Where the messages' texts stand in `text`, by their ends; None if that can't be told.

    Args:
        text: the messages, rendered.
        render: what made it out of them.
    """
    owners: list[tuple[int, str]] = []
    marked = [_marked(message, (index, ""), owners) for index, message in enumerate(messages)]
    if len(owners) > _MOST_MARKS or _MARK.search(text):
        return None
    try:
        with_marks = render(marked)
    except UserError:
        return None
    if _MARK.sub("", with_marks) != text:
        return None
    opened: dict[int, int] = {}
    found = []
    for number, match in enumerate(_MARK.finditer(with_marks)):
        at, (pair, closes) = match.start() - number, divmod(ord(match[0]) - _FIRST_MARK, 2)
        if not closes:
            opened[pair] = at
        elif pair in opened:
            found.append(Written(opened.pop(pair), at, *owners[pair]))
    return found


def _marked(value: Any, owner: tuple[int, str], owners: list[tuple[int, str]]) -> Any:
    """A copy with a pair of marks around each string, inside of its outer white space."""
    if isinstance(value, str):
        core = value.strip()
        if not core:
            return value
        at, mark = value.index(core), _FIRST_MARK + 2 * min(len(owners), _MOST_MARKS)
        owners.append(owner)
        return value[:at] + chr(mark) + core + chr(mark + 1) + value[at + len(core) :]
    if isinstance(value, Mapping):
        index, key = owner
        return {
            name: inner
            if name in NOT_CONTENT and isinstance(inner, str)
            else _marked(inner, (index, key or str(name)), owners)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_marked(inner, owner, owners) for inner in value]
    return value
