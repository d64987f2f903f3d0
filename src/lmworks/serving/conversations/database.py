"""The file that conversations are kept in: SQLite, one file, opened by several processes at once.

Write-ahead logging, so that who reads never waits for who writes; every commit is flushed to the
disk, so that what was answered for is there after a kill or a power cut. The file is for its owner
alone. A file of something else, or of a newer lmworks, is refused and left as it is.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import disk_full_message
from lmworks.serving.feedback.store import FEEDBACK_TABLE
from lmworks.serving.sqlite_script import script_statements

_APPLICATION_ID = 0x6C6D7763  # "lmwc"
_BUSY_S = 10.0

# One step per version of the file; a file of an older version goes through those it lacks.
_STEPS = (
    """
    CREATE TABLE conversations (
        id TEXT PRIMARY KEY,
        title TEXT NOT NULL,
        settings TEXT NOT NULL,
        active_root TEXT,
        created_s REAL NOT NULL,
        changed_s REAL NOT NULL,
        deleted_s REAL
    );
    CREATE TABLE messages (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        conversation_id TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
        parent_id TEXT REFERENCES messages(id) ON DELETE CASCADE,
        active_child TEXT,
        role TEXT NOT NULL,
        content TEXT NOT NULL,
        state TEXT NOT NULL,
        writer TEXT NOT NULL,
        model TEXT NOT NULL,
        info TEXT NOT NULL,
        created_s REAL NOT NULL,
        saved_s REAL NOT NULL
    );
    CREATE INDEX messages_of ON messages(conversation_id, seq);
    CREATE INDEX messages_below ON messages(parent_id);
    CREATE INDEX messages_written ON messages(state) WHERE state = 'writing';
    CREATE VIRTUAL TABLE message_texts USING fts5(content, tokenize = 'trigram');
    CREATE TRIGGER message_gone AFTER DELETE ON messages BEGIN
        DELETE FROM message_texts WHERE rowid = old.seq;
    END;
    CREATE TABLE attachments (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        num_bytes INTEGER NOT NULL,
        text TEXT NOT NULL,
        created_s REAL NOT NULL
    );
    CREATE TABLE message_attachments (
        message_id TEXT NOT NULL REFERENCES messages(id) ON DELETE CASCADE,
        attachment_id TEXT NOT NULL REFERENCES attachments(id),
        position INTEGER NOT NULL,
        PRIMARY KEY (message_id, position)
    );
    CREATE INDEX attachments_used ON message_attachments(attachment_id);
    CREATE TABLE prompts (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        text TEXT NOT NULL,
        changed_s REAL NOT NULL
    );
    CREATE TABLE summaries (
        message_id TEXT PRIMARY KEY REFERENCES messages(id) ON DELETE CASCADE,
        text TEXT NOT NULL,
        model TEXT NOT NULL,
        created_s REAL NOT NULL
    );
    CREATE TABLE vectors (
        conversation_id TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
        encoder TEXT NOT NULL,
        key TEXT NOT NULL,
        vector BLOB NOT NULL,
        PRIMARY KEY (conversation_id, encoder, key)
    ) WITHOUT ROWID;
    """,
    FEEDBACK_TABLE,
)


class Database:
    """One connection, used by any thread in turn.

    Args:
        path: the file; None keeps everything in memory, for this process alone.
    Raises: UserError for a file that is something else, damaged, or can't be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._telling():
            self._connection = self._open()
            self._prepare()

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """What a question gives."""
        with self._lock, self._telling():
            return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> sqlite3.Row | None:
        """The first of what a question gives, or None."""
        return next(iter(self.rows(sql, *values)), None)

    @contextlib.contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on the disk when the block ends, or none of it."""
        with self._lock, self._telling():
            if self._connection.in_transaction:  # within another one: they are one
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.rollback()
                raise
            self._connection.commit()

    def close(self) -> None:
        """Close the file. Twice is fine."""
        with self._lock:
            self._connection.close()

    def _open(self) -> sqlite3.Connection:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Made before SQLite does, so that nobody else can read it for a moment.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(
            self.path or ":memory:",
            timeout=_BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.row_factory = sqlite3.Row
        return connection

    def _prepare(self) -> None:
        run = self._connection.execute
        is_ours = run("PRAGMA application_id").fetchone()[0] == _APPLICATION_ID
        if not is_ours and run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            self._connection.close()
            raise UserError(f"{self.path} is a database of something else: name another file")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run("PRAGMA foreign_keys = ON")
        run("PRAGMA secure_delete = ON")  # what is deleted for good is not left in the file
        with self.change():
            version = run("PRAGMA user_version").fetchone()[0]
            if version > len(_STEPS):
                raise UserError(f"{self.path} was written by a newer lmworks: update lmworks")
            for step in _STEPS[version:]:
                for statement in script_statements(step):
                    run(statement)
            run(f"PRAGMA application_id = {_APPLICATION_ID}")
            run(f"PRAGMA user_version = {len(_STEPS)}")

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn what SQLite and the disk raise into one line."""
        try:
            yield
        except sqlite3.OperationalError as error:
            reason = str(error)
            if "full" in reason and self.path is not None:
                raise UserError(disk_full_message(self.path)) from error
            raise UserError(f"{self.path}: conversations can't be kept there: {reason}") from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise
            raise UserError(
                f"{self.path} is no file of conversations, or damaged: {error}; name another one"
            ) from error
        except OSError as error:
            raise UserError(
                f"{self.path}: conversations can't be kept there: {error.strerror or error}"
            ) from error
