"""What a gateway keeps on disk: one SQLite file in write-ahead mode.

A transaction that has ended is in the file's log before the caller goes on: ending the process,
with `kill -9` too, takes nothing of it back. It is not flushed to the disk each time (that would
cost milliseconds per request), so a power cut can take the last seconds; the file stays whole.

Statements of all requests that are ready at the same moment go into one transaction. They run on
the event loop: a commit without a flush takes some 50 microseconds, less than handing it to a
thread. Moving the log into the file does wait for the disk, so a thread does that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.serving.gateway.audit import Entry, next_entry
from lmworks.serving.sqlite_script import script_statements

Statement = tuple[str, Sequence[Any]]
_VERSION = 1
_CHECKPOINT_EVERY_S = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL, created_s REAL NOT NULL,
  expires_s REAL NOT NULL, revoked_s REAL NOT NULL, admin INTEGER NOT NULL,
  models TEXT NOT NULL, limits TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (
  name TEXT PRIMARY KEY, value INTEGER NOT NULL, ends_s INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS open_requests (
  id TEXT PRIMARY KEY, key_id TEXT NOT NULL, model TEXT NOT NULL, started_s REAL NOT NULL,
  reserved TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, written_tokens INTEGER NOT NULL,
  nano INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage (
  day TEXT NOT NULL, key_id TEXT NOT NULL, model TEXT NOT NULL, backend TEXT NOT NULL,
  requests INTEGER NOT NULL, errors INTEGER NOT NULL, cache_hits INTEGER NOT NULL,
  interrupted INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, nano INTEGER NOT NULL,
  PRIMARY KEY (day, key_id, model, backend)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
  id TEXT PRIMARY KEY, time_s REAL NOT NULL, key_id TEXT NOT NULL, endpoint TEXT NOT NULL,
  model TEXT NOT NULL, backend TEXT NOT NULL, status INTEGER NOT NULL, seconds REAL NOT NULL,
  ttft_s REAL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
  nano INTEGER NOT NULL, cache TEXT NOT NULL, tries INTEGER NOT NULL, error TEXT NOT NULL,
  question TEXT, answer TEXT
);
CREATE INDEX IF NOT EXISTS requests_by_time ON requests (time_s);
CREATE TABLE IF NOT EXISTS audit (
  number INTEGER PRIMARY KEY, time_s REAL NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
  details TEXT NOT NULL, before TEXT NOT NULL, hash TEXT NOT NULL
);
CREATE TRIGGER IF NOT EXISTS audit_keeps BEFORE UPDATE ON audit
  BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS audit_stays BEFORE DELETE ON audit
  BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
"""


class Store:
    """The file. Made and used in one thread; `commit` belongs to one event loop."""

    def __init__(self, path: Path) -> None:
        """Raises: UserError when the file can't be made, or is something else."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _connect(path)
            with self._transaction():
                version = self._connection.execute("PRAGMA user_version").fetchone()[0]
                if version > _VERSION:
                    raise UserError(f"{path} was made by a newer lmworks (version {version})")
                for statement in script_statements(_SCHEMA):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"the gateway's store {path} can't be used: {error}") from error
        self._waiting: list[tuple[Sequence[Statement], asyncio.Future[None]]] = []
        self._closed = threading.Event()
        self._checkpoints: threading.Thread | None = None

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The answer of a SELECT."""
        cursor = self._connection.execute(query, parameters)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def row(self, query: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """The first row of a SELECT."""
        found: tuple[Any, ...] | None = self._connection.execute(query, parameters).fetchone()
        return found

    def write(self, *statements: Statement) -> None:
        """Run statements as one transaction, now. Raises: UserError when it can't be done."""
        try:
            with self._transaction():
                for sql, parameters in statements:
                    self._connection.execute(sql, parameters)
        except sqlite3.Error as error:
            raise UserError(f"the gateway's store {self.path} can't be written: {error}") from error

    async def commit(self, *statements: Statement) -> None:
        """Run statements in one transaction with those of other requests; return when it is done.

        Raises: UserError when it can't be done.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._commit_waiting)
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((statements, done))
        await done

    def _commit_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        error: UserError | None = None
        try:
            self.write(*(statement for statements, _ in waiting for statement in statements))
        except UserError as failure:
            error = failure
        for _, done in waiting:
            if done.done():
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    # --- the audit log ---

    def audit(self, pepper: bytes, actor: str, action: str, details: Mapping[str, Any]) -> Entry:
        """Append an entry; two processes that do so at once get two numbers."""
        try:
            with self._transaction():
                last = self._entries("ORDER BY number DESC LIMIT 1")
                entry = next_entry(pepper, last[0] if last else None, actor, action, details)
                self._connection.execute(
                    "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        entry.number,
                        entry.time_s,
                        entry.actor,
                        entry.action,
                        json.dumps(entry.details, ensure_ascii=False),
                        entry.before,
                        entry.hash,
                    ),
                )
        except sqlite3.Error as error:
            raise UserError(f"the audit log in {self.path} can't be written: {error}") from error
        return entry

    def audit_entries(self) -> list[Entry]:
        """All of them, in order."""
        return self._entries("ORDER BY number")

    def _entries(self, order: str) -> list[Entry]:
        rows = self.rows(f"SELECT * FROM audit {order}")
        try:
            return [Entry(**{**row, "details": json.loads(row["details"])}) for row in rows]
        except (ValueError, TypeError) as error:
            raise UserError(f"the audit log in {self.path} holds an entry that is none") from error

    # --- upkeep ---

    def remove_before(self, time_s: float) -> None:
        """Remove the request log before a time, and counters of windows that have ended."""
        self.write(
            ("DELETE FROM requests WHERE time_s < ?", (time_s,)),
            ("DELETE FROM counters WHERE ends_s < ?", (time.time() - 86400,)),
        )

    def keep_log_small(self) -> None:
        """Move the write-ahead log into the file now and then, in a thread; until `close`."""
        self._connection.execute("PRAGMA wal_autocheckpoint = 0")
        self._checkpoints = threading.Thread(
            target=self._checkpoint, name="lmworks-gateway-checkpoints", daemon=True
        )
        self._checkpoints.start()

    def _checkpoint(self) -> None:
        connection = _connect(self.path)
        while not self._closed.wait(_CHECKPOINT_EVERY_S):
            with contextlib.suppress(sqlite3.Error):  # busy: the next time, then
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        connection.close()

    def close(self) -> None:
        """End the thread and close the file."""
        self._closed.set()
        if self._checkpoints:
            self._checkpoints.join()
        self._connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=3.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    path.chmod(0o600)  # the log may hold what people wrote
    return connection
