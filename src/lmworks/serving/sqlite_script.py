"""An SQL script as single statements, so that it can be part of a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator


def script_statements(script: str) -> Iterator[str]:
    """The statements of a script, in order, each of which ends at the end of a line.

    `sqlite3`'s `executescript` would commit before the first. A semicolon within a trigger ends
    none: SQLite itself says where they end.
    """
    collected = ""
    for line in script.splitlines(keepends=True):
        collected += line
        if sqlite3.complete_statement(collected):
            yield collected
            collected = ""
