"""Make a conversation fit into a number of tokens: by leaving out, cutting, or summing up.

| strategy | what goes |
|---|---|
| `drop-oldest` | whole turns, the oldest first |
| `middle-out` | whole turns from the middle, so that the beginning and the end stay |
| `summarise` | the oldest turns, for a summary of them that a model writes |
| `truncate-content` | the middle of the longest texts, all turns stay |

A turn is a user's message and all up to the next: answers, calls and their results stay together
and roles go on taking turns. System messages and the last turn are never dropped. Every result has
been counted whole: it is never above the limit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmworks.core.errors import UserError
from lmworks.core.tables import look_up
from lmworks.tokenizers.aligned import Span
from lmworks.tokenizers.requests import ChatMessage, Request, text_of

if TYPE_CHECKING:
    from lmworks.tokenizers.budget import Counter

FIT_STRATEGIES: dict[str, str] = {
    "drop-oldest": "lmworks.tokenizers.fitting:drop_oldest",
    "middle-out": "lmworks.tokenizers.fitting:middle_out",
    "summarise": "lmworks.tokenizers.fitting:summarise",
    "truncate-content": "lmworks.tokenizers.fitting:truncate_content",
}
Summarise = Callable[[str], str]
_SYSTEM = ("system", "developer")
_SUMMARY = "Summary of the conversation so far:\n"
_LEFT_OUT = "\n[... {count} tokens left out ...]\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """What became of one of the messages: dropped, cut or summarised."""

    index: int
    role: str
    what: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """Messages that fit, how many tokens they are with the tools, and what was changed."""

    messages: tuple[ChatMessage, ...]
    tokens: int
    changes: tuple[Change, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is to fit into what."""

    request: Request
    limit: int
    counter: Counter
    summarise: Summarise | None = None

    def count(self, messages: Sequence[ChatMessage]) -> int:
        """Tokens of the request with these messages."""
        return self.counter.tokens(messages, self.request.tools)

    def fitted(self, messages: Sequence[ChatMessage], changes: Sequence[Change]) -> Fitted | None:
        """The result, if it fits."""
        tokens = self.count(messages)
        if tokens > self.limit:
            return None
        return Fitted(messages=tuple(messages), tokens=tokens, changes=tuple(changes))


def fit(
    request: Request,
    counter: Counter,
    *,
    limit: int,
    strategy: str = "drop-oldest",
    summarise: Summarise | None = None,
) -> Fitted:
    """The request's messages within `limit` tokens, tools included; unchanged if they fit.

    Args:
        strategy: a name in FIT_STRATEGIES.
        summarise: text to a shorter text, for the strategy of that name.
    Raises: UserError when not even the least that the strategy keeps fits.
    """
    method = look_up(FIT_STRATEGIES, strategy, seam="fit_strategy")
    task = Task(request=request, limit=limit, counter=counter, summarise=summarise)
    whole = task.fitted(request.messages, ())
    if whole is not None:
        return whole
    found: Fitted | None = method(task)
    if found is None:
        raise _too_small(task, strategy)
    return found


def _too_small(task: Task, strategy: str) -> UserError:
    kept = _without(task.request.messages, _droppable(task.request.messages))
    if strategy == "truncate-content":
        return UserError(
            f"{task.limit} tokens are too few even with every text cut: "
            "drop turns with --fit drop-oldest, or allow more"
        )
    return UserError(
        f"the system messages, the last turn and the tools alone are {task.count(kept)} tokens, "
        f"{task.limit} are allowed: cut texts with --fit truncate-content, or allow more"
    )


def turns(messages: Sequence[ChatMessage]) -> list[list[int]]:
    """Numbers of the messages of each turn; system messages are in none."""
    found: list[list[int]] = []
    for index, message in enumerate(messages):
        if message["role"] in _SYSTEM:
            continue
        if not found or message["role"] == "user":
            found.append([])
        found[-1].append(index)
    return found


def _droppable(messages: Sequence[ChatMessage]) -> list[list[int]]:
    return turns(messages)[:-1]


def _without(
    messages: Sequence[ChatMessage], dropped: Sequence[Sequence[int]]
) -> list[ChatMessage]:
    gone = {index for turn in dropped for index in turn}
    return [message for index, message in enumerate(messages) if index not in gone]


def _changes(task: Task, dropped: Sequence[Sequence[int]], what: str) -> list[Change]:
    messages = task.request.messages
    return [
        Change(index=index, role=messages[index]["role"], what=what)
        for index in sorted(index for turn in dropped for index in turn)
    ]


def drop_oldest(task: Task) -> Fitted | None:
    """As few of the oldest turns as will do."""
    return _drop(task, _droppable(task.request.messages))


def middle_out(task: Task) -> Fitted | None:
    """As few turns around the middle as will do; the first turn goes last."""
    droppable = _droppable(task.request.messages)
    middle = len(droppable) / 2  # of all turns, the last included
    order = sorted(range(len(droppable)), key=lambda number: (abs(number - middle), number))
    return _drop(task, [droppable[number] for number in order])


def _drop(task: Task, order: Sequence[Sequence[int]]) -> Fitted | None:
    """Drop turns in this order until the rest fits."""

    def kept(number: int) -> list[ChatMessage]:
        return _without(task.request.messages, order[:number])

    # Fewer messages are fewer tokens, but for odd templates: what is found is counted again.
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if task.count(kept(middle)) <= task.limit:
            high = middle
        else:
            low = middle + 1
    for number in range(low, len(order) + 1):
        found = task.fitted(kept(number), _changes(task, order[:number], "dropped"))
        if found is not None:
            return found
    return None


def summarise(task: Task) -> Fitted | None:
    """The oldest turns give way to a summary, which takes up to a quarter of the limit.

    The summary stands at the end of the system message, else before the first text that is kept: a
    turn of its own would break the order of roles. It is cut until all fits.

    Raises: UserError when there is nothing to write one with.
    """
    if task.summarise is None:
        raise UserError("summarise needs a model: name one with --summarise-with")
    room = dataclasses.replace(task, limit=task.limit - task.limit // 4)
    order = _droppable(task.request.messages)
    shorter = _drop(room, order) or _drop(task, order)
    if shorter is None:
        return None
    gone = {change.index for change in shorter.changes}
    old = [message for index, message in enumerate(task.request.messages) if index in gone]
    summary = task.summarise(_transcript(old)).strip()
    changes = [dataclasses.replace(change, what="summarised") for change in shorter.changes]
    length = _tokens(task, summary)
    while length > 0:
        text = _beginning(task, summary, length)
        found = task.fitted(_with_summary(shorter.messages, text), changes)
        if found is not None:
            return found
        length = length * 3 // 4
    return dataclasses.replace(shorter, tokens=task.count(shorter.messages))


def _transcript(messages: Sequence[ChatMessage]) -> str:
    lines = []
    for message in messages:
        lines.append(f"{message['role']}: {text_of(message)}".rstrip())
        for call in message.get("tool_calls") or ():
            function = call["function"]
            lines.append(f"(calls {function['name']} with {function.get('arguments', '')})")
    return "\n".join(lines)


def _with_summary(messages: Sequence[ChatMessage], summary: str) -> list[ChatMessage]:
    changed = [dict(message) for message in messages]
    first = changed[0]
    if first["role"] in _SYSTEM:
        changed[0] = _with_text(first, f"{text_of(first)}\n\n{_SUMMARY}{summary}".strip())
    else:
        changed[0] = _with_text(first, f"{_SUMMARY}{summary}\n\n{text_of(first)}".strip())
    return changed


def _with_text(message: ChatMessage, text: str) -> ChatMessage:
    """The message with another text; pictures stay."""
    content = message.get("content")
    if isinstance(content, list):
        images = [part for part in content if "text" not in part]
        return {**message, "content": [{"type": "text", "text": text}, *images]}
    return {**message, "content": text}


def truncate_content(task: Task) -> Fitted | None:
    """Cut the middle out of texts over some length, the same for all, as long as it can be.

    Tool results and old turns are cut first, then the last turn too, then system messages.
    """
    messages = task.request.messages
    last = turns(messages)[-1:] or [[]]
    system = {i for i, message in enumerate(messages) if message["role"] in _SYSTEM}
    spared: tuple[set[int], ...] = ({*last[0], *system}, system, set())
    lengths = [_tokens(task, text_of(message)) for message in messages]
    for keep in spared:
        found = _cut_to_fit(task, [i for i in range(len(messages)) if i not in keep], lengths)
        if found is not None:
            return found
    return None


def _cut_to_fit(task: Task, cut: Sequence[int], lengths: Sequence[int]) -> Fitted | None:
    """The longest common length of the texts in `cut` with which all fits."""
    messages = task.request.messages
    note = _tokens(task, _LEFT_OUT.format(count=max(lengths)))  # what a cut costs itself
    cut = [index for index in cut if lengths[index] > note]
    spans = {index: _spans(task, text_of(messages[index])) for index in cut}

    def attempt(most: int) -> Fitted | None:
        changed, changes = list(messages), []
        for index in cut:
            if lengths[index] > most + note:
                message = messages[index]
                text = _shortened(text_of(message), spans[index], most)
                changed[index] = _with_text(message, text)
                what = f"cut from {lengths[index]} to {most} tokens"
                changes.append(Change(index=index, role=message["role"], what=what))
        return task.fitted(changed, changes)

    best = attempt(0)
    low, high = 0, max((lengths[index] for index in cut), default=0)
    while best is not None and low < high:
        middle = (low + high + 1) // 2
        found = attempt(middle)
        if found is None:
            high = middle - 1
        else:
            best, low = found, middle
    return best


def _tokens(task: Task, text: str) -> int:
    return len(task.counter.tokenizer.encode(text))


def _spans(task: Task, text: str) -> list[Span]:
    return task.counter.tokenizer.encode_offsets(text)[1]


def _shortened(text: str, spans: Sequence[Span], most: int) -> str:
    """The first and last tokens of a text, as many of each, and how many are left out."""
    head, tail = most - most // 2, most // 2
    start = spans[head - 1][1] if head else 0
    end = spans[len(spans) - tail][0] if tail else len(text)
    return text[:start] + _LEFT_OUT.format(count=len(spans) - most) + text[max(start, end) :]


def _beginning(task: Task, text: str, most: int) -> str:
    spans = _spans(task, text)
    return text[: spans[most - 1][1]] if most < len(spans) else text
