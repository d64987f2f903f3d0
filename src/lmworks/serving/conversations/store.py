"""Conversations on disk: a tree of messages each, of which one branch is the active one.

Nothing is overwritten: who edits a message or asks again adds a sibling, and the old branch stays
and can be gone back to. An answer is stored before its first token and saved as it grows, together
with who writes it; when that process is gone, what it wrote is kept and marked as cut.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.config import from_mapping, to_mapping
from lmworks.core.folders import data_folder
from lmworks.serving.conversations.attachments import Attachments
from lmworks.serving.conversations.database import Database
from lmworks.serving.conversations.memories import Memories
from lmworks.serving.conversations.prompts import Prompts
from lmworks.serving.conversations.search import Found, index, search
from lmworks.serving.conversations.values import (
    ChatSettings,
    Conversation,
    Message,
    NotFound,
    Role,
    State,
    active_leaf,
    branch,
    title_of,
)
from lmworks.serving.feedback.store import FeedbackStore

KEPT_WHEN_DELETED_S = 30 * 86400.0
_SILENT_S = 600.0  # an answer that was not saved for so long has no writer any more
_LAST: Any = object()


def file_of(option: str) -> Path | None:
    """What `--conversations` names: a file, `off` (None), or nothing: the user's own place."""
    if option == "off":
        return None
    return Path(option).expanduser() if option else data_folder() / "conversations.db"


class ConversationStore:
    """See the module. Several processes may have the same file open.

    Args:
        path: the file; None keeps everything in memory, for this process alone.
    Raises: UserError for a file that can't be used.
    """

    def __init__(self, path: Path | None) -> None:
        self.database = Database(path)
        self.prompts = Prompts(self.database)
        self.attachments = Attachments(self.database)
        self.memories = Memories(self.database)
        self.feedback = FeedbackStore(self.database)
        self._writer = f"{platform.node()}:{os.getpid()}:{secrets.token_hex(4)}"
        _LIVES.add(self._writer)
        self.mark_cut()
        self._forget_old()

    # --- conversations ---

    def create(self, title: str = "", settings: ChatSettings | None = None) -> Conversation:
        """A new, empty conversation. Without a title it gets one from its first message."""
        now, conversation_id = time.time(), secrets.token_hex(8)
        with self.database.change() as connection:
            connection.execute(
                "INSERT INTO conversations VALUES (?, ?, ?, NULL, ?, ?, NULL)",
                (conversation_id, _clean(title), _dump(settings or ChatSettings()), now, now),
            )
        return self.get(conversation_id)

    def get(self, conversation_id: str) -> Conversation:
        """One conversation, deleted ones too. Raises: NotFound."""
        row = self.database.row("SELECT * FROM conversations WHERE id = ?", conversation_id)
        if row is None:
            raise NotFound(f"no conversation {conversation_id!r}")
        return _conversation(row)

    def recent(self, limit: int = 200, before_s: float | None = None) -> list[Conversation]:
        """The conversations that are not deleted, newest change first."""
        rows = self.database.rows(
            "SELECT * FROM conversations WHERE deleted_s IS NULL AND changed_s < ? "
            "ORDER BY changed_s DESC, id LIMIT ?",
            float("inf") if before_s is None else before_s,
            limit,
        )
        return [_conversation(row) for row in rows]

    def search(self, query: str, limit: int = 50) -> list[Found]:
        """Conversations whose title or messages hold all words of `query`, best first."""
        return search(self.database, query, limit)

    def set(
        self,
        conversation_id: str,
        *,
        title: str | None = None,
        settings: ChatSettings | None = None,
    ) -> Conversation:
        """Change a title or the settings. Raises: NotFound."""
        before = self.get(conversation_id)
        with self.database.change() as connection:
            connection.execute(
                "UPDATE conversations SET title = ?, settings = ? WHERE id = ?",
                (
                    before.title if title is None else _clean(title),
                    _dump(settings or before.settings),
                    conversation_id,
                ),
            )
        return self.get(conversation_id)

    def delete(self, conversation_id: str) -> None:
        """Take it out of the list; `restore` brings it back for 30 days. Raises: NotFound."""
        self._mark_deleted(conversation_id, time.time())

    def restore(self, conversation_id: str) -> None:
        """Undo `delete`. Raises: NotFound."""
        self._mark_deleted(conversation_id, None)

    def forget(self, conversation_id: str) -> None:
        """Delete for good, with all that was made of it. Raises: NotFound."""
        self.get(conversation_id)
        with self.database.change() as connection:
            attached = self.attachments.of_conversation(conversation_id)
            connection.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))
            self.attachments.forget_unused(attached)

    def _mark_deleted(self, conversation_id: str, when_s: float | None) -> None:
        self.get(conversation_id)
        with self.database.change() as connection:
            connection.execute(
                "UPDATE conversations SET deleted_s = ? WHERE id = ?", (when_s, conversation_id)
            )

    def _forget_old(self) -> None:
        with self.database.change() as connection:
            connection.execute(
                "DELETE FROM conversations WHERE deleted_s < ?",
                (time.time() - KEPT_WHEN_DELETED_S,),
            )
            self.attachments.forget_unused()

    # --- messages ---

    def messages(self, conversation_id: str) -> list[Message]:
        """The whole tree, in the order in which messages were added. Raises: NotFound."""
        self.get(conversation_id)
        self.mark_cut()
        attached: dict[str, list[str]] = {}
        for row in self.database.rows(
            "SELECT message_id, attachment_id FROM message_attachments JOIN messages ON "
            "messages.id = message_id WHERE conversation_id = ? ORDER BY position",
            conversation_id,
        ):
            attached.setdefault(row["message_id"], []).append(row["attachment_id"])
        rows = self.database.rows(
            "SELECT * FROM messages WHERE conversation_id = ? ORDER BY seq", conversation_id
        )
        return [_message(row, attached.get(row["id"], ())) for row in rows]

    def path(self, conversation_id: str, leaf: str | None = None) -> list[Message]:
        """The active branch, or the one that ends in `leaf`. Raises: NotFound."""
        messages = self.messages(conversation_id)
        return branch(
            messages, leaf or active_leaf(messages, self.get(conversation_id).active_root)
        )

    def message(self, message_id: str) -> Message:
        """One message. Raises: NotFound."""
        row = self.database.row("SELECT * FROM messages WHERE id = ?", message_id)
        if row is None:
            raise NotFound(f"no message {message_id!r}")
        attached = self.database.rows(
            "SELECT attachment_id FROM message_attachments WHERE message_id = ? ORDER BY position",
            message_id,
        )
        return _message(row, [row["attachment_id"] for row in attached])

    def add(
        self,
        conversation_id: str,
        role: Role,
        content: str,
        *,
        parent: str | None = _LAST,
        attachments: Sequence[str] = (),
        state: State = "whole",
        model: str = "",
        info: Mapping[str, Any] | None = None,
        active: bool = True,
    ) -> Message:
        """Add a message under `parent` (the end of the active branch, if not given), and go to it
        unless `active` says no.

        Raises: NotFound for a parent that is not of this conversation.
        """
        if parent is _LAST:
            path = self.path(conversation_id)
            parent = path[-1].id if path else None
        elif parent is not None and self.message(parent).conversation_id != conversation_id:
            raise NotFound(f"no message {parent!r} in this conversation")
        message_id, now = secrets.token_hex(8), time.time()
        with self.database.change() as connection:
            cursor = connection.execute(
                "INSERT INTO messages (id, conversation_id, parent_id, role, content, state, "
                "writer, model, info, created_s, saved_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(message_id, conversation_id, parent, role, content, state, self._writer),
                    *(model, json.dumps(dict(info or {})), now, now),
                ),
            )
            self.attachments.attach(message_id, attachments)
            if state != "writing":
                index(connection, cursor.lastrowid or 0, content)
            if role == "user":
                self._title_from(connection, conversation_id, content)
            if active:
                self._go_to(connection, conversation_id, message_id)
        return self.message(message_id)

    def edit(self, message_id: str, content: str) -> Message:
        """Another version of a message, beside it, with the same attachments; of an answer it is
        a correction, and says so. Raises: NotFound."""
        old = self.message(message_id)
        return self.add(
            old.conversation_id,
            old.role,
            content,
            parent=old.parent_id,
            attachments=old.attachment_ids,
            model=old.model,
            info={"edited": True, "edit_of": message_id} if old.role == "assistant" else None,
        )

    def choose(self, message_id: str) -> None:
        """Make the branch that holds this message the active one. Raises: NotFound."""
        message = self.message(message_id)
        with self.database.change() as connection:
            self._go_to(connection, message.conversation_id, message_id)

    def activate(self, conversation_id: str, children: Mapping[str | None, str]) -> None:
        """Say for each message (None: the conversation itself) which child is the active one.

        Children of other messages are passed over.
        """
        with self.database.change() as connection:
            for above, child in children.items():
                connection.execute(
                    "UPDATE messages SET active_child = ?1 WHERE id = ?2 AND conversation_id = ?3 "
                    "AND EXISTS (SELECT 1 FROM messages c WHERE c.id = ?1 AND c.parent_id = ?2)",
                    (child, above, conversation_id),
                )
                if above is None:
                    connection.execute(
                        "UPDATE conversations SET active_root = ?1 WHERE id = ?2 AND EXISTS "
                        "(SELECT 1 FROM messages m WHERE m.id = ?1 AND m.conversation_id = ?2 "
                        "AND m.parent_id IS NULL)",
                        (child, conversation_id),
                    )

    def save(
        self, message_id: str, content: str, state: State, info: Mapping[str, Any] | None = None
    ) -> None:
        """What there is of an answer now. Raises: NotFound."""
        with self.database.change() as connection:
            row = connection.execute(
                "UPDATE messages SET content = ?, state = ?, info = coalesce(?, info), "
                "saved_s = ?, writer = ? WHERE id = ? RETURNING seq, conversation_id",
                (
                    *(content, state, None if info is None else json.dumps(dict(info))),
                    *(time.time(), self._writer, message_id),
                ),
            ).fetchone()
            if row is None:
                raise NotFound(f"no message {message_id!r}")
            if state != "writing":
                index(connection, row["seq"], content)
                _touch(connection, row["conversation_id"])

    def mark_cut(self) -> list[str]:
        """Mark the answers whose writer is gone; their ids."""
        rows = self.database.rows(
            "SELECT id, seq, content, writer, saved_s FROM messages WHERE state = 'writing'"
        )
        lost = [row for row in rows if not self._is_written(row["writer"], row["saved_s"])]
        if lost:
            with self.database.change() as connection:
                for row in lost:
                    connection.execute(
                        "UPDATE messages SET state = 'cut' WHERE id = ? AND state = 'writing' "
                        "AND writer = ?",
                        (row["id"], row["writer"]),
                    )
                    index(connection, row["seq"], row["content"])
        return [row["id"] for row in lost]

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def _is_written(self, writer: str, saved_s: float) -> bool:
        if writer == self._writer:
            return True
        host, _, rest = writer.rpartition(":")[0].rpartition(":")
        recent = time.time() - saved_s < _SILENT_S
        if host != platform.node() or not rest.isdecimal() or os.name != "posix":
            return recent  # of another machine one can only tell by its silence
        try:
            os.kill(int(rest), 0)
        except ProcessLookupError:
            return False
        except OSError:  # it lives, and is somebody else's
            return recent
        return recent and not (int(rest) == os.getpid() and _is_older_life(writer))

    def _title_from(self, connection: sqlite3.Connection, conversation_id: str, text: str) -> None:
        connection.execute(
            "UPDATE conversations SET title = ? WHERE id = ? AND title = ''",
            (title_of(text), conversation_id),
        )

    def _go_to(self, connection: sqlite3.Connection, conversation_id: str, message_id: str) -> None:
        above = (
            "WITH RECURSIVE up(id, parent_id) AS (SELECT id, parent_id FROM messages WHERE id = ? "
            "UNION ALL SELECT m.id, m.parent_id FROM messages m JOIN up ON m.id = up.parent_id) "
        )
        connection.execute(
            above + "UPDATE messages SET active_child = (SELECT id FROM up WHERE parent_id = "
            "messages.id) WHERE id IN (SELECT parent_id FROM up)",
            (message_id,),
        )
        connection.execute(
            above + "UPDATE conversations SET active_root = (SELECT id FROM up WHERE parent_id "
            "IS NULL) WHERE id = ?",
            (message_id, conversation_id),
        )
        _touch(connection, conversation_id)


# Writers of this process: a store that is closed does not end the answers of its threads.
_LIVES: set[str] = set()


def _is_older_life(writer: str) -> bool:
    """Whether a writer with our process number is one that ran before us (as 1, in a container)."""
    return writer not in _LIVES


def _touch(connection: sqlite3.Connection, conversation_id: str) -> None:
    connection.execute(
        "UPDATE conversations SET changed_s = ? WHERE id = ?", (time.time(), conversation_id)
    )


def _conversation(row: sqlite3.Row) -> Conversation:
    return Conversation(
        id=row["id"],
        title=row["title"],
        settings=from_mapping(ChatSettings, json.loads(row["settings"]), where="settings"),
        active_root=row["active_root"],
        created_s=row["created_s"],
        changed_s=row["changed_s"],
        deleted=row["deleted_s"] is not None,
    )


def _message(row: sqlite3.Row, attached: Sequence[str]) -> Message:
    return Message(
        id=row["id"],
        conversation_id=row["conversation_id"],
        parent_id=row["parent_id"],
        active_child=row["active_child"],
        role=row["role"],
        content=row["content"],
        state=row["state"],
        model=row["model"],
        info=json.loads(row["info"]),
        created_s=row["created_s"],
        attachment_ids=tuple(attached),
    )


def _dump(settings: ChatSettings) -> str:
    return json.dumps(to_mapping(settings))


def _clean(title: str) -> str:
    return " ".join(title.split())[:200]
