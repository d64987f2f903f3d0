"""Feedback with the conversation before each answer, out of a database or a JSON-lines file.

A database is the one that `lmworks serve` and `lmworks chat` keep, also while they run. Of it come
thumbs, corrections (answers that a person rewrote), and what clients told. What was deleted is not
read, nor what hangs on an answer that was never finished. A file has one object a line, with the
fields of `POST /v1/feedback`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.core.files import JsonLine, hash_json, read_json_lines
from lmworks.serving.feedback.values import Feedback, checked

if TYPE_CHECKING:
    from lmworks.serving.conversations.store import ConversationStore
    from lmworks.serving.conversations.values import Message

_SQLITE = b"SQLite format 3\x00"
_ROLES = ("system", "user", "assistant")
_MAX_LINE_BYTES = 8 << 20


def read_feedback(path: Path) -> Iterator[Feedback]:
    """All feedback of a database or a file. Raises: UserError naming the file, and the line."""
    if not path.is_file():
        raise UserError(f"{path} is no file: name a database of conversations, or a .jsonl file")
    with open(path, "rb") as file:
        is_database = file.read(len(_SQLITE)) == _SQLITE
    if not is_database:
        yield from map(_of_line, read_json_lines(path, max_bytes=_MAX_LINE_BYTES))
        return
    from lmworks.serving.conversations.store import ConversationStore

    store = ConversationStore(path)
    try:
        yield from feedback_of(store)
    finally:
        store.close()


def feedback_digest(path: Path) -> str:
    """A hash of what a file or database says, and of nothing else in it."""
    return hash_json([vars(feedback) for feedback in read_feedback(path)])


def feedback_of(store: ConversationStore) -> Iterator[Feedback]:
    """Feedback of all conversations that are not deleted, then what clients told."""
    rows = store.database.rows(
        "SELECT DISTINCT c.id FROM conversations c JOIN messages m ON m.conversation_id = c.id "
        "LEFT JOIN feedback f ON f.message_id = m.id WHERE c.deleted_s IS NULL AND "
        "(f.id IS NOT NULL OR json_extract(m.info, '$.edit_of') IS NOT NULL) "
        "ORDER BY c.created_s, c.id"
    )
    for row in rows:
        yield from _of_conversation(store, row["id"])
    yield from store.feedback.told()


def _of_conversation(store: ConversationStore, conversation_id: str) -> Iterator[Feedback]:
    messages = {message.id: message for message in store.messages(conversation_id)}
    system = store.get(conversation_id).settings.system
    votes = store.feedback.votes(conversation_id)
    for message in messages.values():
        vote = votes.get(message.id)
        first = messages.get(message.info.get("edit_of", ""))
        if message.role != "assistant" or not (vote or first) or not message.content.strip():
            continue
        common: dict[str, Any] = {
            "source": f"chat:{conversation_id}",
            "prompt": _before(store, messages, message, system),
            "model": message.model,
        }
        if not any(m["role"] == "user" for m in common["prompt"]):
            continue
        if vote:
            yield Feedback(
                id=message.id,
                answer=message.content,
                rating=vote.rating,
                comment=vote.comment,
                **common,
            )
        if first is not None and first.content.strip():
            yield Feedback(
                id=f"{message.id}-correction",
                answer=first.content,
                correction=message.content,
                **common,
            )


def _before(
    store: ConversationStore, messages: Mapping[str, Message], message: Message, system: str
) -> tuple[Mapping[str, str], ...]:
    """The system prompt and the messages above one, as a model is sent them when all fit."""
    from lmworks.serving.conversations.answers import turns_of

    path, above = [message], message.parent_id
    while above is not None:
        path.append(messages[above])
        above = messages[above].parent_id
    turns = turns_of(store, path[:0:-1])
    told = [{"role": turn.role, "content": turn.text} for turn in turns]
    return (*([{"role": "system", "content": system}] if system else []), *told)


def _of_line(line: JsonLine) -> Feedback:
    where, row = f"{line.where}: ", line.value
    if not isinstance(row, dict):
        raise UserError(f"{where}must be an object with messages, answer and rating or correction")
    prompt = _messages(where, row.get("messages"))
    texts = {name: _text(where, row, name) for name in ("answer", "correction", "comment", "model")}
    rating = checked(
        where,
        prompt=prompt,
        rating=row.get("rating"),
        answer=texts["answer"],
        correction=texts["correction"],
        comment=texts["comment"],
    )
    told_id = row.get("id")
    return Feedback(
        id=told_id if isinstance(told_id, str) and told_id else f"line-{line.number}",
        source=_text(where, row, "user") or f"line-{line.number}",
        prompt=tuple(prompt),
        rating=rating,
        **texts,
    )


def _messages(where: str, value: Any) -> Sequence[Mapping[str, str]]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}messages: must be a list of messages, the last one answered")
    found = []
    for message in value:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES or not isinstance(message.get("content"), str):
            raise UserError(f"{where}messages: each needs a role ({', '.join(_ROLES)}) and a text")
        found.append({"role": role, "content": _valid(where, "messages", message["content"])})
    return found


def _text(where: str, row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}{name}: must be a text")
    return _valid(where, name, value or "")


def _valid(where: str, name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}{name}: holds half a character, which is no text") from None
    return text
