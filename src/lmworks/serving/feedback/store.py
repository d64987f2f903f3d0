"""Feedback beside the conversations: thumbs on stored messages, and what clients told of theirs.

A thumb hangs on its message: it can be changed and taken back, and goes when the conversation is
deleted for good. A correction on the page is another version of the message, which says of which
one it is a correction (`Message.info`), so it needs no row here.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lmworks.core.errors import UserError
from lmworks.serving.feedback.values import MAX_COMMENT, Feedback, Vote

if TYPE_CHECKING:
    from lmworks.serving.conversations.database import Database

FEEDBACK_TABLE = """
    CREATE TABLE feedback (
        id TEXT PRIMARY KEY,
        message_id TEXT UNIQUE REFERENCES messages(id) ON DELETE CASCADE,
        source TEXT NOT NULL,
        model TEXT NOT NULL,
        prompt TEXT NOT NULL,
        answer TEXT NOT NULL,
        rating INTEGER NOT NULL,
        correction TEXT NOT NULL,
        comment TEXT NOT NULL,
        created_s REAL NOT NULL
    );
"""


class FeedbackStore:
    """The table of a conversations database. Any thread may call it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- thumbs on messages ---

    def rate(self, message_id: str, rating: int, comment: str = "") -> None:
        """Put a thumb on a message in the place of the one that is there; 0 takes it away.

        Raises: UserError for a comment that is too long.
        """
        if len(comment) > MAX_COMMENT:
            raise UserError(f"comment: over {MAX_COMMENT:,} characters")
        with self._database.change() as connection:
            connection.execute("DELETE FROM feedback WHERE message_id = ?", (message_id,))
            if rating:
                connection.execute(
                    "INSERT INTO feedback VALUES (?, ?, '', '', '[]', '', ?, '', ?, ?)",
                    (f"fb_{message_id}", message_id, rating, comment, time.time()),
                )

    def votes(self, conversation_id: str) -> dict[str, Vote]:
        """The thumbs of a conversation by message."""
        return self._votes("m.conversation_id = ?", conversation_id)

    def vote(self, message_id: str) -> Vote | None:
        """The thumb on a message."""
        return self._votes("m.id = ?", message_id).get(message_id)

    def _votes(self, where: str, value: str) -> dict[str, Vote]:
        rows = self._database.rows(
            "SELECT message_id, rating, comment FROM feedback JOIN messages m ON "
            f"m.id = message_id WHERE {where}",
            value,
        )
        return {
            row["message_id"]: Vote(rating=row["rating"], comment=row["comment"]) for row in rows
        }

    # --- what clients tell ---

    def tell(
        self,
        source: str,
        *,
        prompt: Sequence[Mapping[str, str]],
        answer: str,
        rating: int,
        correction: str = "",
        comment: str = "",
        model: str = "",
        name: str = "",
    ) -> str:
        """Keep what a client says of an answer of its own; its id.

        Args:
            name: what the client calls the answer; said again, it replaces what was said before.
        """
        asked = json.dumps([dict(message) for message in prompt], ensure_ascii=False)
        feedback_id = self._id_of(source, name or json.dumps([asked, answer]))
        with self._database.change() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO feedback VALUES (?, NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(feedback_id, source, model, asked, answer, rating, correction, comment),
                    time.time(),
                ),
            )
        return feedback_id

    def withdraw(self, source: str, feedback_id: str) -> bool:
        """Take back what the same client told; False where there is no such thing."""
        with self._database.change() as connection:
            cursor = connection.execute(
                "DELETE FROM feedback WHERE id = ? AND source = ? AND message_id IS NULL",
                (feedback_id, source),
            )
        return cursor.rowcount > 0

    def told(self) -> list[Feedback]:
        """All that clients told, oldest first."""
        rows = self._database.rows(
            "SELECT * FROM feedback WHERE message_id IS NULL ORDER BY created_s, id"
        )
        return [
            Feedback(
                id=row["id"],
                source=row["source"],
                prompt=tuple(json.loads(row["prompt"])),
                answer=row["answer"],
                rating=row["rating"],
                correction=row["correction"],
                comment=row["comment"],
                model=row["model"],
            )
            for row in rows
        ]

    def _id_of(self, source: str, name: str) -> str:
        # Of this client alone: nobody overwrites what another one said.
        digest = hashlib.sha256(f"{source}\0{name}".encode("utf-8", "replace")).hexdigest()
        return f"fb_{digest[:24]}"
