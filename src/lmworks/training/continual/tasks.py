"""What is to be learnt in one round: rows of one kind, or the three kinds that feedback gives.

| kind | rows | learnt by |
|---|---|---|
| `answers` | `messages` | the loss on what the assistant said |
| `documents` | `text` | the loss on every token |
| `pairs` | `prompt`, `chosen`, `rejected` | DPO or its kin |
| `votes` | `prompt`, `completion`, `label` | KTO |

A folder has train.jsonl and heldout.jsonl; a folder of `data feedback` has several such folders, of
which votes are left out where there are pairs, since they say the same once more.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lmworks.core.errors import UserError
from lmworks.training.preferences.rows import as_judged, as_pair, read_rows

Kind = Literal["answers", "documents", "pairs", "votes"]
Rows = Sequence[Mapping[str, Any]]
_FIELDS: dict[Kind, tuple[str, ...]] = {
    "answers": ("messages",),
    "pairs": ("chosen", "rejected"),
    "votes": ("completion", "label"),
    "documents": ("text",),
}
PREFERENCES = ("pairs", "votes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """Rows of one kind, to train on and to measure by."""

    kind: Kind
    train: Rows
    heldout: Rows


def read_task(place: Path) -> list[Phase]:
    """The phases of a task, in the order in which they are learnt.

    Raises: UserError naming the file and line at fault, and where there is nothing to train on.
    """
    inside = [place / name for name in ("answers", "pairs", "votes")]
    if place.is_dir() and not (place / "train.jsonl").exists() and any(p.is_dir() for p in inside):
        found = [phase for folder in inside if folder.is_dir() for phase in _phases(folder)]
        if any(phase.kind == "pairs" for phase in found):
            found = [phase for phase in found if phase.kind != "votes"]
    else:
        found = _phases(place)
    if not found:
        raise UserError(f"{place}: no row to train on")
    return found


def _phases(place: Path) -> list[Phase]:
    train_path = place if place.is_file() else place / "train.jsonl"
    if not train_path.is_file():
        raise UserError(
            f"{train_path} is missing: give a dataset, a corpus, or a folder of `data feedback`"
        )
    train = list(read_rows(train_path))
    heldout_path = place / "heldout.jsonl"
    heldout = list(read_rows(heldout_path)) if heldout_path.is_file() else []
    if not train:
        return []
    first_where, first = train[0]
    kind = kind_of(first, first_where)
    for where, row in (*train, *heldout):
        if kind_of(row, where) != kind:
            raise UserError(f"{where}: its fields are not those of {kind}, as the first row's")
        _check(kind, row, where)
    return [Phase(kind=kind, train=[row for _, row in train], heldout=[row for _, row in heldout])]


def shortened(phases: Sequence[Phase], characters: int) -> list[Phase]:
    """The phases with held-out documents cut to their beginnings, since long ones are dear to
    measure and no more than one opinion each; 0 keeps them whole."""
    if not characters:
        return list(phases)
    return [
        dataclasses.replace(
            phase,
            heldout=[
                {**row, "text": row["text"][:characters]} if phase.kind == "documents" else row
                for row in phase.heldout
            ],
        )
        for phase in phases
    ]


def kind_of(row: Mapping[str, Any], where: str) -> Kind:
    """Which kind of row this is. Raises: UserError for none of them."""
    for kind, fields in _FIELDS.items():
        if all(field in row for field in fields):
            return kind
    known = "; ".join(f"{kind}: {', '.join(fields)}" for kind, fields in _FIELDS.items())
    raise UserError(f"{where}: can't tell what is to be learnt; known fields are {known}")


def _check(kind: Kind, row: Mapping[str, Any], where: str) -> None:
    from lmworks.training.conversations import check_messages

    if kind == "answers":
        check_messages(row["messages"], where)
    elif kind == "pairs":
        as_pair(where, row)
    elif kind == "votes":
        as_judged(where, row)
    elif not isinstance(row["text"], str):
        raise UserError(f"{where}: 'text' must be a text")


def row_id(row: Mapping[str, Any]) -> str:
    """A name of a row's content: the same row is known again."""
    from lmworks.data.documents import stable_id

    kept = {field: row[field] for fields in _FIELDS.values() for field in fields if field in row}
    return stable_id(json.dumps([row.get("prompt"), kept], sort_keys=True))


def group_of(row: Mapping[str, Any]) -> str:
    """Rows of one group are alike: a document's questions, a question's answers."""
    for field in ("document", "group", "id"):
        if isinstance(row.get(field), str) and row[field]:
            return str(row[field])
    return row_id(row)
