"""A document, and files of them: one JSON object a line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropped:
    """A document that is not in the corpus: which rule, on what evidence."""

    id: str
    source: str
    title: str
    rule: str
    evidence: str


def stable_id(*parts: str) -> str:
    """A short name that depends on nothing but `parts`."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def stable_share(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but `parts`: a coin that lands the same again."""
    return int(stable_id(*parts), 16) / 16**16


def read_documents(path: str | Path) -> Iterator[Document]:
    """Documents of a corpus file. Raises: UserError naming the file and line at fault."""
    path = Path(path)
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                    fields = {f.name: str(row[f.name]) for f in dataclasses.fields(Document)}
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{path}, line {number}: not a document with id, group, source, title, text"
                    ) from error
                yield Document(**fields)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: give a corpus made by `lmworks data build`") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error


def write_documents(path: str | Path, rows: Iterable[Document | Dropped]) -> None:
    """Write rows as JSON lines, whole or not at all."""
    with atomic_open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")
