"""Documents on disk, to be read again in any order: a corpus may be larger than memory.

Memory holds an entry a document: id, group, size and where its line starts.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import TracebackType

from lmworks.core.files import writing
from lmworks.data.documents import Document, format_row, parse_row


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What must be known of a document to decide about it."""

    id: str
    group: str
    num_bytes: int
    offset: int


class Spool:
    """Append documents, then read them by their entries. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._offset = 0
        with writing(path):
            self._file = open(path, "wb+")  # noqa: SIM115 - closed by __exit__

    def append(self, document: Document) -> None:
        """Write one more. Raises: UserError when the disk is full."""
        line = format_row(document).encode("utf-8", "replace")
        with writing(self.path):
            self._file.write(line)
        self.entries.append(
            Entry(
                id=document.id,
                group=document.group,
                num_bytes=document.num_bytes,
                offset=self._offset,
            )
        )
        self._offset += len(line)

    def read(self, entry: Entry) -> Document:
        """The document of an entry."""
        with writing(self.path):  # what is buffered is written first
            self._file.seek(entry.offset)
        return parse_row(self._file.readline(), Document, str(self.path))

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
