"""Which part of a request each token of the rendered chat comes from.

The text of every message is rendered with marks around it (characters that occur nowhere else), so
its place is known however the template orders and trims. Where marks change what a template does,
texts are looked for in order instead. What no message wrote is the template's: it belongs to the
message in whose turn it stands, to the tools if it is only there with them, or to the beginning of
the answer.

A token belongs to the part in which it begins; the counts of all parts are those of the whole.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.tokenizers import chat
from lmworks.tokenizers.content_marks import NOT_CONTENT, find_written

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

ANSWER, TOOLS = -1, -2  # parts that are no message
_MOST_RENDERED = 300  # messages up to which every beginning of the conversation is rendered


@dataclasses.dataclass
class Share:
    """Tokens of one part: of what was written, and of what the template wrote around it."""

    content: int = 0
    template: int = 0


def attribute(
    tokenizer: PipelineTokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
) -> tuple[list[int], dict[int, Share]]:
    """The ids of the request, and each part's share of them by the message's number.

    Raises: UserError when the template fails on these messages.
    """
    ids, spans = chat.encode_offsets(tokenizer, messages, add_generation_prompt=True, tools=tools)

    def render(some: Sequence[Any], *, prompt: bool = True, tooled: bool = True) -> str:
        return chat.render(
            tokenizer, some, add_generation_prompt=prompt, tools=tools if tooled else None
        )

    text = render(messages)
    contents = _contents(text, messages, render)
    turns = _turns(text, messages, contents, render)
    tooled = _tooled(text, messages, render) if tools else (0, 0)
    shares = {part: Share() for part in (*range(len(messages)), TOOLS, ANSWER)}
    ends = [end for _, end, _ in contents]
    begins = [start for start, _ in turns]
    for start, _ in spans:
        at = bisect.bisect_right(ends, start)
        if at < len(contents) and contents[at][0] <= start:
            shares[contents[at][2]].content += 1
        elif tooled[0] <= start < tooled[1]:
            shares[TOOLS].content += 1
        else:
            part = turns[max(0, bisect.bisect_right(begins, start) - 1)][1]
            shares[part].template += 1
    return ids, shares


def _contents(
    text: str, messages: Sequence[Mapping[str, Any]], render: Callable[..., str]
) -> list[tuple[int, int, int]]:
    """(start, end, message) of what messages wrote, in order and without overlap."""
    found = find_written(text, messages, render)
    if found is None:
        return _merged(_by_search(text, messages))
    return _merged([(start, end, message) for start, end, message, _ in found])


def _by_search(text: str, messages: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, int]]:
    spans, at = [], 0
    for index, message in enumerate(messages):
        for core in _strings(message):
            start = text.find(core, at)
            if start >= 0:
                at = start + len(core)
                spans.append((start, at, index))
    return spans


def _strings(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, str):
        if value.strip() and key not in NOT_CONTENT:
            yield value.strip()
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _strings(inner, str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _merged(spans: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    merged: list[tuple[int, int, int]] = []
    for start, end, owner in sorted(spans):
        if merged and start < merged[-1][1]:
            start = merged[-1][1]
        if start < end:
            merged.append((start, end, owner))
    return merged


def _turns(
    text: str,
    messages: Sequence[Mapping[str, Any]],
    contents: Sequence[tuple[int, int, int]],
    render: Callable[..., str],
) -> list[tuple[int, int]]:
    """(start, message) of each turn, and where the answer begins."""
    turns = [(0, 0)]
    for index in range(1, len(messages)):
        start = None
        if len(messages) <= _MOST_RENDERED:
            start = _common_end(text, lambda: render(messages[:index], prompt=False))  # noqa: B023
        if start is None:  # the rest of the turn before is then told to belong to this one
            ends = [end for _, end, owner in contents if owner < index]
            start = max(ends, default=turns[-1][0])
        turns.append((max(start, turns[-1][0]), index))
    answer = _common_end(text, lambda: render(messages, prompt=False))
    turns.append((len(text) if answer is None else max(answer, turns[-1][0]), ANSWER))
    return turns


def _common_end(text: str, render: Callable[[], str]) -> int | None:
    """Where the text rendered ends, if all of `text` up to there is the same."""
    try:
        shorter = render()
    except UserError:
        return None
    return len(shorter) if text.startswith(shorter) else None


def _tooled(
    text: str, messages: Sequence[Mapping[str, Any]], render: Callable[..., str]
) -> tuple[int, int]:
    """The part of the text that is not there without tools."""
    try:
        without = render(messages, tooled=False)
    except UserError:
        return 0, 0
    most = min(len(text), len(without))
    first = next((i for i in range(most) if text[i] != without[i]), most)
    last = next((i for i in range(most - first) if text[-1 - i] != without[-1 - i]), most - first)
    return first, len(text) - last
