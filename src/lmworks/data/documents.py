"""A document, why one was dropped, and files of both: one JSON object a line.

Text is written as UTF-8; a lone surrogate (half a character, as broken file names and escapes give
it) becomes `?`, so that whatever was read can be written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """`group` holds documents together that must not be split between training and held-out."""

    id: str
    group: str
    source: str  # the file, or where else the text came from
    title: str
    text: str

    @property
    def num_bytes(self) -> int:
        """Size of the text as UTF-8."""
        return len(self.text.encode("utf-8", "replace"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropped:
    """A document that is not in the corpus: which rule, on what evidence."""

    id: str
    source: str
    title: str
    rule: str
    evidence: str

    @classmethod
    def of(cls, document: Document, rule: str, evidence: str) -> Dropped:
        """The row for `document`."""
        return cls(
            id=document.id,
            source=document.source,
            title=document.title,
            rule=rule,
            evidence=evidence,
        )


Row = TypeVar("Row", Document, Dropped)


def stable_id(*parts: str) -> str:
    """A short name that depends on nothing but `parts`."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def stable_share(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but `parts`: a coin that lands the same again."""
    return int(stable_id(*parts)[:13], 16) / 16**13  # 52 bits: exact as a float, never 1.0


def read_documents(path: str | Path) -> Iterator[Document]:
    """Documents of a corpus file. Raises: UserError naming the file and line at fault."""
    return _read_rows(Path(path), Document)


def read_dropped(path: str | Path) -> Iterator[Dropped]:
    """Rows of a `dropped.jsonl`. Raises: UserError naming the file and line at fault."""
    return _read_rows(Path(path), Dropped)


def _read_rows(path: Path, kind: type[Row]) -> Iterator[Row]:
    # Binary, so that a damaged line is told by its number too.
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield parse_row(line, kind, f"{path}, line {number}")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: give a corpus made by `lmworks data build`") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder: name a file of documents in it") from error
    except PermissionError as error:
        raise UserError(f"no permission to read {path}") from error


def parse_row(line: bytes, kind: type[Row], where: str) -> Row:
    """One line as a `kind`. Raises: UserError that starts with `where`."""
    names = [field.name for field in dataclasses.fields(kind)]
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start} of the line)") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON; expected one object a line") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object with {', '.join(names)}")
    for name in names:
        if not isinstance(row.get(name), str):
            raise UserError(f"{where}: {name!r} is missing or no string; needed: {names}")
    return kind(**{name: row[name] for name in names})


def format_row(row: Document | Dropped) -> str:
    """One line of JSON, with its end."""
    return json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n"


def write_documents(path: str | Path, rows: Iterable[Document | Dropped]) -> None:
    """Write rows as JSON lines, whole or not at all."""
    with atomic_open(path, "w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.writelines(map(format_row, rows))
