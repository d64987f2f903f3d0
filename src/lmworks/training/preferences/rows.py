"""Preference data as it lies in files: pairs of answers, or answers with a thumb up or down.

The shapes are those of TRL: `prompt`, `chosen`, `rejected` (a pair), or `prompt`, `completion`,
`label` (one answer, liked or not). A prompt is a text or a list of messages; where it is left out,
it is what both answers begin with. A row that can't be used is named by file, line and field.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json_lines

Messages = tuple[Mapping[str, Any], ...]
Text = str | Messages  # of one row all are texts, or all are messages
_ROLES = ("system", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to a prompt, the first liked better.

    Attributes:
        where: file and line, for errors.
        group: rows of one group are drawn together in an interval.
        scores: by name, how much better the chosen answer is in that regard: below zero, worse.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    where: str
    group: str
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """One answer to a prompt, liked or not."""

    prompt: Text
    completion: Text
    label: bool
    where: str
    group: str


class BadRow(UserError):
    """A row that can't be used; the message says where and why."""


def read_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line, row) of a JSON-lines file. Raises: UserError for what is none."""
    if not path.is_file():
        raise UserError(f"{path} is missing: give a folder with train.jsonl, or a .jsonl file")
    for where, _, row in read_json_lines(path):
        if not isinstance(row, dict):
            raise UserError(f"{where}: a row must be an object with fields")
        yield where, row


def as_pair(where: str, row: Mapping[str, Any], scores: Sequence[str] = ()) -> Pair:
    """A row of `prompt`, `chosen`, `rejected`.

    Args:
        scores: names of fields with numbers to keep; one that is absent is left out.
    Raises: BadRow for a missing or empty field, answers that are the same, or mixed shapes.
    """
    chosen, rejected = _text(where, row, "chosen"), _text(where, row, "rejected")
    if chosen == rejected:
        raise BadRow(f"{where}: 'chosen' and 'rejected' are the same: there is nothing to prefer")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadRow(f"{where}: 'chosen' and 'rejected' must both be text, or both messages")
    prompt = _text(where, row, "prompt") if row.get("prompt") is not None else None
    # Some sets give the prompt as text beside answers that are whole conversations.
    if prompt is None or (isinstance(prompt, str) and _begins_with_user(chosen)):
        prompt, chosen, rejected = _shared_beginning(where, chosen, rejected)
    prompt, chosen = _alike(where, prompt, chosen, "chosen")
    prompt, rejected = _alike(where, prompt, rejected, "rejected")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        _check_answer(where, name, answer)
    kept = {name: _number(where, row, name) for name in scores if row.get(name) is not None}
    return Pair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        where=where,
        group=_group(row, prompt),
        scores=kept,
    )


def as_judged(where: str, row: Mapping[str, Any]) -> list[Judged]:
    """A row of `prompt`, `completion`, `label`; a pair gives two: chosen, then rejected.

    Raises: BadRow as `as_pair`, and for a label that is neither true nor false.
    """
    if "chosen" in row or "rejected" in row:
        pair = as_pair(where, row)
        return [
            Judged(prompt=pair.prompt, completion=text, label=label, where=where, group=pair.group)
            for text, label in ((pair.chosen, True), (pair.rejected, False))
        ]
    label = row.get("label")
    if not isinstance(label, bool) and label not in (0, 1):
        raise BadRow(f"{where}: 'label' must be true or false, not {str(label)[:40]!r}")
    prompt = _text(where, row, "prompt")
    prompt, completion = _alike(where, prompt, _text(where, row, "completion"), "completion")
    _check_answer(where, "completion", completion)
    return [
        Judged(
            prompt=prompt,
            completion=completion,
            label=bool(label),
            where=where,
            group=_group(row, prompt),
        )
    ]


def check_both_labels(rows: Iterable[Judged], where: str) -> None:
    """Raises: UserError where all answers are liked, or none is."""
    labels = {row.label for row in rows}
    if len(labels) == 1:
        kind = "true" if labels.pop() else "false"
        raise UserError(
            f"{where}: every 'label' is {kind}: what is liked can only be told from what is not; "
            "add rows of the other kind, or use `lmworks train sft` on liked answers alone"
        )


def as_chat(row: Pair | Judged) -> Any:
    """The row with texts as messages: a user's prompt, an assistant's answer."""
    if not isinstance(row.prompt, str):
        return row
    prompt = as_messages(row.prompt, "user")
    if isinstance(row, Pair):
        chosen = as_messages(row.chosen, "assistant")
        rejected = as_messages(row.rejected, "assistant")
        return dataclasses.replace(row, prompt=prompt, chosen=chosen, rejected=rejected)
    return dataclasses.replace(
        row, prompt=prompt, completion=as_messages(row.completion, "assistant")
    )


def as_messages(text: Text, role: str) -> Messages:
    """Messages as they are; a text as one message of `role`."""
    return ({"role": role, "content": text},) if isinstance(text, str) else text


def _text(where: str, row: Mapping[str, Any], field: str) -> Text:
    value = row.get(field)
    if value is None:
        raise BadRow(f"{where}: the field {field!r} is missing")
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise BadRow(f"{where}: {field!r} must be a text or a list of messages")
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadRow(f"{where}: {field}[{index}] needs a text 'content'")
        if message.get("role") not in _ROLES:
            raise BadRow(
                f"{where}: {field}[{index}] has role {message.get('role')!r}; "
                f"known: {', '.join(_ROLES)}"
            )
    return tuple(value)


def _begins_with_user(answer: Text) -> bool:
    return not isinstance(answer, str) and answer[0]["role"] != "assistant"


def _shared_beginning(where: str, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """The prompt that both answers begin with, and what is left of each; as TRL cuts them."""
    same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(chosen, rejected)))
    if isinstance(chosen, str) and same and chosen[same - 1] == " ":
        same -= 1  # the blank belongs to the word after it
    if not same:
        raise BadRow(
            f"{where}: there is no 'prompt', and 'chosen' and 'rejected' do not begin alike"
        )
    return chosen[:same], chosen[same:], rejected[same:]


def _alike(where: str, prompt: Text, answer: Text, field: str) -> tuple[Text, Text]:
    """A text that answers messages is the assistant's message."""
    if isinstance(prompt, str) and not isinstance(answer, str):
        raise BadRow(f"{where}: 'prompt' is a text and {field!r} a list: give both as messages")
    if not isinstance(prompt, str) and isinstance(answer, str):
        return prompt, as_messages(answer, "assistant") if answer.strip() else ""
    return prompt, answer


def _check_answer(where: str, field: str, answer: Text) -> None:
    if isinstance(answer, str):
        if not answer.strip():
            raise BadRow(f"{where}: {field!r} is empty: an answer needs text")
    elif not any(m["role"] == "assistant" and m["content"].strip() for m in answer):
        raise BadRow(f"{where}: {field!r} has no assistant message with text")


def _number(where: str, row: Mapping[str, Any], field: str) -> float:
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow(f"{where}: {field!r} must be a number, not {str(value)[:40]!r}")
    return float(value)


def _group(row: Mapping[str, Any], prompt: Text) -> str:
    """Rows of one document, else of one prompt, stay together."""
    named = row.get("document")
    return named if isinstance(named, str) and named else json.dumps(prompt, sort_keys=True)
