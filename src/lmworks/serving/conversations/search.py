"""Finding conversations again, by any part of a word of their titles and messages.

The index is one of three characters in a row, so that parts of words, Chinese and code are found
alike. Words of one or two characters are looked for in the texts themselves. What a person types is
never read as a language of queries.
"""

from __future__ import annotations

import dataclasses
import sqlite3

from lmworks.serving.conversations.database import Database

_AROUND = 60  # characters shown on both sides of what was found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A conversation that holds the words, and where: a message's id, or none for the title."""

    conversation_id: str
    title: str
    changed_s: float
    message_id: str | None
    excerpt: str


def index(connection: sqlite3.Connection, seq: int, content: str) -> None:
    """Make a message's text findable, in place of what was known of it."""
    connection.execute("DELETE FROM message_texts WHERE rowid = ?", (seq,))
    connection.execute("INSERT INTO message_texts(rowid, content) VALUES (?, ?)", (seq, content))


def search(database: Database, query: str, limit: int) -> list[Found]:
    """See `ConversationStore.search`."""
    words = query.replace("\0", " ").split()[:16]
    if not words:
        return []
    found: dict[str, Found] = {}
    title_holds = " AND ".join(["title LIKE ? ESCAPE '\\'"] * len(words))
    for row in database.rows(
        f"SELECT id, title, changed_s FROM conversations WHERE deleted_s IS NULL AND {title_holds} "
        "ORDER BY changed_s DESC LIMIT ?",
        *map(_like, words),
        limit,
    ):
        found[row["id"]] = Found(
            conversation_id=row["id"],
            title=row["title"],
            changed_s=row["changed_s"],
            message_id=None,
            excerpt="",
        )
    for row in _messages_with(database, words, 4 * limit):
        if row["id"] not in found and len(found) < limit:
            found[row["id"]] = Found(
                conversation_id=row["id"],
                title=row["title"],
                changed_s=row["changed_s"],
                message_id=row["message_id"],
                excerpt=excerpt(row["content"], words),
            )
    return list(found.values())


def _messages_with(database: Database, words: list[str], limit: int) -> list[sqlite3.Row]:
    long = [word for word in words if len(word) >= 3]
    short = [word for word in words if len(word) < 3]
    conditions = ["messages.content LIKE ? ESCAPE '\\'"] * len(short)
    values: list[object] = [_like(word) for word in short]
    order = "messages.seq DESC"
    source = "messages"
    if long:
        source = "message_texts JOIN messages ON messages.seq = message_texts.rowid"
        conditions.append("message_texts MATCH ?")
        values.append(" AND ".join('"' + word.replace('"', '""') + '"' for word in long))
        order = "bm25(message_texts)"
    return database.rows(
        "SELECT conversations.id, title, changed_s, messages.id AS message_id, messages.content "
        f"FROM {source} JOIN conversations ON conversations.id = messages.conversation_id "
        f"WHERE deleted_s IS NULL AND {' AND '.join(conditions)} ORDER BY {order} LIMIT ?",
        *values,
        limit,
    )


def excerpt(text: str, words: list[str]) -> str:
    """The place where the first of the words stands, on one line."""
    lower = text.lower()
    at = min((place for word in words if (place := lower.find(word.lower())) >= 0), default=0)
    start = max(0, at - _AROUND // 2)
    piece = " ".join(text[start : at + 2 * _AROUND].split())
    return ("…" if start else "") + piece + ("…" if at + 2 * _AROUND < len(text) else "")


def _like(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"
