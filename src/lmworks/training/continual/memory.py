"""What is kept of the tasks: some rows of each to rehearse, and held-out rows to measure by.

Every task has the same share of the memory. Which rows stay is a coin of each row, so that a memory
that shrinks keeps a part of what it had, rows that come again are known, and the same rounds give
the same memory. It is one JSON-lines file: a row in it says its task and kind.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open
from lmworks.data.documents import stable_share
from lmworks.training.continual.tasks import Kind, Phase, group_of, kind_of, row_id
from lmworks.training.preferences.rows import read_rows

MEMORY, HELDOUT = "memory.jsonl", "heldout.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """A row of a task."""

    task: str
    kind: Kind
    row: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Rows to rehearse and rows to measure by, of all tasks so far."""

    rehearsed: tuple[Kept, ...] = ()
    heldout: tuple[Kept, ...] = ()

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, the oldest first."""
        return list(dict.fromkeys(kept.task for kept in (*self.heldout, *self.rehearsed)))

    @property
    def rehearsed_rows(self) -> list[Mapping[str, Any]]:
        """The rows to rehearse, of all tasks."""
        return [kept.row for kept in self.rehearsed]

    def heldout_of(self, task: str) -> dict[Kind, list[Mapping[str, Any]]]:
        """The rows that a task is measured by, by kind."""
        found: dict[Kind, list[Mapping[str, Any]]] = defaultdict(list)
        for kept in self.heldout:
            if kept.task == task:
                found[kept.kind].append(kept.row)
        return dict(found)

    def with_task(
        self, task: str, phases: Iterable[Phase], *, most: int, most_heldout: int
    ) -> Memory:
        """The memory once a task is learnt; more rows of a known task join those it has.

        Args:
            most: rows to rehearse of all tasks together.
            most_heldout: held-out rows of each task and kind; 0 keeps all.
        """
        phases = list(phases)
        known = {row_id(kept.row) for kept in self.heldout}
        fresh = [
            Kept(task=task, kind=phase.kind, row=row)
            for phase in phases
            for row in phase.train
            if row_id(row) not in known  # what is measured by is never learnt
        ]
        heldout = [
            Kept(task=task, kind=phase.kind, row=row) for phase in phases for row in phase.heldout
        ]
        return Memory(
            rehearsed=_fair([*self.rehearsed, *fresh], most),
            heldout=_capped(_distinct([*self.heldout, *heldout]), most_heldout),
        )

    def write(self, folder: Path) -> None:
        """Write both files into `folder`."""
        for name, rows in ((MEMORY, self.rehearsed), (HELDOUT, self.heldout)):
            with atomic_open(folder / name, "w", encoding="utf-8", newline="\n") as file:
                for kept in rows:
                    line = json.dumps(dataclasses.asdict(kept), ensure_ascii=False)
                    file.write(line + "\n")

    @classmethod
    def read(cls, folder: Path) -> Memory:
        """As `write` left it. Raises: UserError naming the line at fault."""
        return cls(rehearsed=tuple(_kept(folder / MEMORY)), heldout=tuple(_kept(folder / HELDOUT)))


def _kept(path: Path) -> Iterable[Kept]:
    for where, line in read_rows(path):
        task, row = line.get("task"), line.get("row")
        if not isinstance(task, str) or not isinstance(row, dict):
            raise UserError(f"{where}: was not written by a round of `train continue`")
        yield Kept(task=task, kind=kind_of(row, where), row=row)


def _distinct(rows: Iterable[Kept]) -> list[Kept]:
    return list({(kept.task, row_id(kept.row)): kept for kept in rows}.values())


def _coin(kept: Kept) -> tuple[float, str]:
    name = row_id(kept.row)
    return stable_share("memory", name), name


def _fair(rows: Iterable[Kept], most: int) -> tuple[Kept, ...]:
    """`most` rows, as many of each task as of any other, where it has as many."""
    by_task: dict[str, list[Kept]] = defaultdict(list)
    for kept in _distinct(rows):
        by_task[kept.task].append(kept)
    left, chosen = most, dict[str, list[Kept]]()
    for done, task in enumerate(sorted(by_task, key=lambda t: (len(by_task[t]), t))):
        share = left // (len(by_task) - done)
        chosen[task] = sorted(by_task[task], key=_coin)[:share]
        left -= len(chosen[task])
    return tuple(kept for task in by_task for kept in chosen[task])


def _capped(rows: Iterable[Kept], most: int) -> tuple[Kept, ...]:
    """At most so many of each task and kind: one of each group, then a second of each, and so on,
    since an interval needs groups."""
    if not most:
        return tuple(rows)
    by_kind: dict[tuple[str, str], list[Kept]] = defaultdict(list)
    for kept in rows:
        by_kind[kept.task, kept.kind].append(kept)
    found: list[Kept] = []
    for all_of_kind in by_kind.values():
        ranks: dict[str, int] = defaultdict(int)
        ranked = []
        for kept in sorted(all_of_kind, key=_coin):
            group = group_of(kept.row)
            ranked.append((ranks[group], stable_share("heldout", group), _coin(kept), kept))
            ranks[group] += 1
        found += [entry[-1] for entry in sorted(ranked, key=lambda entry: entry[:-1])[:most]]
    return tuple(found)
