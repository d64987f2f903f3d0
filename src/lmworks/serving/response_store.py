"""Responses that can be asked for again, and gone on from.

One SQLite table, in memory unless it is given a file. In memory the oldest give way once there are
`MAX_IN_MEMORY`; in a file they stay until they are deleted. Each holds its own input and output;
the conversation before it is found by following `previous_response_id`.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.serving.errors import ApiError

MAX_IN_MEMORY = 1000
MAX_CHAIN = 500  # turns of one conversation
_TABLE = """
CREATE TABLE IF NOT EXISTS responses (
  id TEXT PRIMARY KEY, previous TEXT, created REAL NOT NULL,
  input TEXT NOT NULL, response TEXT NOT NULL
)
"""


class ResponseStore:
    """Any thread may call it.

    Args:
        path: the database; None: in memory.
    Raises: UserError where the file is no such database.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._most = MAX_IN_MEMORY if path is None else None
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(path or ":memory:", check_same_thread=False)
            if path is not None:
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute(_TABLE)
        except sqlite3.Error as error:
            raise UserError(f"{path}: can't be used to keep responses: {error}") from error

    def save(self, response: dict[str, Any], items: list[dict[str, Any]]) -> None:
        """Keep a response and the input it answered; one of the same id is replaced."""
        row = (
            response["id"],
            response["previous_response_id"],
            time.time(),
            json.dumps(items, ensure_ascii=False),
            json.dumps(response, ensure_ascii=False),
        )
        with self._lock, self._database:
            self._database.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?)", row)
            if self._most is not None:
                self._database.execute(
                    "DELETE FROM responses WHERE id IN (SELECT id FROM responses "
                    "ORDER BY created DESC LIMIT -1 OFFSET ?)",
                    (self._most,),
                )

    def get(self, response_id: str) -> dict[str, Any]:
        """Raises: ApiError (404)."""
        found: dict[str, Any] = json.loads(self._row(response_id)[1])
        return found

    def items(self, response_id: str) -> list[dict[str, Any]]:
        """The input that a response answered. Raises: ApiError (404)."""
        found: list[dict[str, Any]] = json.loads(self._row(response_id)[2])
        return found

    def delete(self, response_id: str) -> None:
        """Raises: ApiError (404)."""
        self._row(response_id)
        with self._lock, self._database:
            self._database.execute("DELETE FROM responses WHERE id = ?", (response_id,))

    def conversation(self, response_id: str) -> list[dict[str, Any]]:
        """All items up to and with a response's output, oldest first.

        Raises: ApiError (404) where the chain has a gap, (400) where it is too long.
        """
        turns: list[list[dict[str, Any]]] = []
        name: str | None = response_id
        while name is not None:
            if len(turns) >= MAX_CHAIN:
                message = f"previous_response_id: the conversation has over {MAX_CHAIN} turns"
                raise ApiError(400, message, param="previous_response_id")
            previous, response, items = self._row(name)
            turns.append([*json.loads(items), *json.loads(response)["output"]])
            name = previous
        return [item for turn in reversed(turns) for item in turn]

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def _row(self, response_id: str) -> tuple[str | None, str, str]:
        with self._lock:
            query = "SELECT previous, response, input FROM responses WHERE id = ?"
            row = self._database.execute(query, (response_id,)).fetchone()
        if row is None:
            message = "there is no such response here: it was not stored, or is gone"
            raise ApiError(404, message, param="response_id", code="response_not_found")
        return row[0], row[1], row[2]
