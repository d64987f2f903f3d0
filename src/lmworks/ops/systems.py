"""The 88 systems that lmworks is made for, and how far each one is.

`systems.json` is the one place where a state is written; `lmworks systems` prints it and
`docs/systems.md` is made from it. `works` means: runs from the command line and from Python on
real input, equals an outside reference, and both are shown. Until then a system is `partial`,
with the commands that are true today, or `missing`. Nothing here is computed from the code: a
test follows every command, API and evidence path instead.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from lmworks.core.config import from_mapping, option
from lmworks.core.errors import UserError, unknown_name
from lmworks.core.files import read_json

State = Literal["works", "partial", "missing"]
STATES: tuple[State, ...] = ("works", "partial", "missing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """One row. Several commands, APIs or paths are separated by `, `."""

    chapter: str = option(help="number and name of the chapter, `1 Tokenization`")
    system: str = option(help="name of the system")
    state: State = option(help="how far it is")
    command: str = option(help="commands that run what there is of it")
    api: str = option(help="the same from Python, as module:attribute")
    evidence: str = option(help="tests and benchmarks that show it, as paths in the repository")

    def __post_init__(self) -> None:
        told = bool(self.command or self.api or self.evidence)
        if self.state == "missing" and told:
            raise ValueError(f"{self.system} is missing, so it has no command, api or evidence")
        if self.state != "missing" and not self.api:
            raise ValueError(f"{self.system} is {self.state}, so it needs an api")
        if self.state == "works" and not (self.command and self.evidence):
            raise ValueError(f"{self.system} works, so it needs a command and evidence")

    @property
    def number(self) -> int:
        """The chapter's number."""
        return int(self.chapter.split()[0])


@functools.cache
def load_systems() -> tuple[System, ...]:
    """All rows, in the order of the chapters."""
    path = Path(__file__).with_name("systems.json")
    return tuple(
        from_mapping(System, row, where=f"{path.name}, row {number}")
        for number, row in enumerate(read_json(path, "list of systems"), start=1)
    )


def of_chapter(chapter: str) -> tuple[System, ...]:
    """The rows of a chapter, by its number or name.

    Raises: UserError with the nearest name when there is no such chapter.
    """
    wanted = chapter.strip().casefold()
    found = tuple(
        row
        for row in load_systems()
        if wanted in (str(row.number), row.chapter.casefold(), _name(row).casefold())
    )
    if found:
        return found
    if wanted.isdigit():
        raise UserError(f"no chapter {wanted}: they go from 1 to {load_systems()[-1].number}")
    raise unknown_name("chapter", chapter, {_name(row) for row in load_systems()})


def _name(row: System) -> str:
    return row.chapter.split(" ", 1)[1]


def counts(rows: Iterable[System]) -> dict[State, int]:
    """How many rows are in each state."""
    found = Counter(row.state for row in rows)
    return {state: found[state] for state in STATES}


def chapters(rows: Iterable[System]) -> dict[str, list[System]]:
    """Rows by chapter, in order."""
    grouped: dict[str, list[System]] = {}
    for row in rows:
        grouped.setdefault(row.chapter, []).append(row)
    return grouped


def to_markdown(rows: Sequence[System]) -> str:
    """The page `docs/systems.md`."""
    number = counts(rows)
    parts = [
        "# The systems",
        "<!-- Made from src/lmworks/ops/systems.json by `lmworks systems --markdown`. -->",
        f"{len(rows)} systems in {len(chapters(rows))} chapters: {number['works']} work, "
        f"{number['partial']} partly, {number['missing']} are missing. *Works* means that it runs "
        "from the command line and from Python on real input, that the result is right against "
        "an outside reference, and that the documentation shows both. *Partial* means that what "
        "stands in its row is true today, and that the rest of the system is not there yet.",
    ]
    for chapter, members in chapters(rows).items():
        parts.append(f"## {chapter}\n\n{_table(members)}")
    return "\n\n".join(parts) + "\n"


def _table(rows: Iterable[System]) -> str:
    lines = ["| System | State | Command | API | Evidence |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [_code(text) for text in (row.command, row.api, row.evidence)]
        lines.append("| " + " | ".join([row.system, row.state, *cells]) + " |")
    return "\n".join(lines)


def _code(text: str) -> str:
    """Each part as code, on a line of its own."""
    return "<br>".join(f"`{part}`" for part in text.split(", ") if part)
