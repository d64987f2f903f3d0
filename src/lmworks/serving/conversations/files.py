"""Conversations as files: out as Markdown, HTML and JSON, in from JSON.

JSON holds the whole tree and comes back as it was; Markdown and HTML hold the active branch, for
people. What comes in may be ours, a list of messages as the field's datasets have it
(`{"messages": [{"role", "content"}]}`, one object or a list of them), or the tree (`mapping`) that
hosted chats export. Text is escaped, and everything that comes in is checked.
"""

from __future__ import annotations

import dataclasses
import html
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, get_args

from lmworks.core.config import from_mapping, to_mapping
from lmworks.core.errors import UserError, unknown_name
from lmworks.serving.conversations.attachments import read_attachment
from lmworks.serving.conversations.store import ConversationStore
from lmworks.serving.conversations.values import (
    ChatSettings,
    Conversation,
    Message,
    Role,
    State,
    title_of,
)
from lmworks.serving.feedback.values import MAX_COMMENT

FORMATS = {"markdown": "md", "json": "json", "html": "html"}
_KIND = "lmworks conversation"
_MAX_MESSAGES = 20_000
_KEPT_INFO = ("prompt_tokens", "completion_tokens", "tokens_per_s", "finish_reason", "error")
_STYLE = (
    "body{margin:0 auto;max-width:46rem;padding:2rem 1.25rem 4rem;font:1rem/1.6 system-ui,"
    "sans-serif;color:#23262b;background:#faf9f6}h1{font-size:1.5rem}.m{margin:1.4rem 0;"
    "white-space:pre-wrap;overflow-wrap:anywhere}.user{background:#f1efea;border-radius:1rem;"
    "padding:.7rem 1rem}.who{font-size:.8rem;color:#656a71}@media(prefers-color-scheme:dark)"
    "{body{color:#e4e4e1;background:#15171a}.user{background:#23272c}.who{color:#9ba1a8}}"
)


def export(store: ConversationStore, conversation_id: str, kind: str) -> str:
    """A conversation as the text of a file. Raises: NotFound; UserError for an unknown kind."""
    if kind not in FORMATS:
        raise unknown_name("format", kind, FORMATS)
    conversation = store.get(conversation_id)
    if kind == "json":
        return json.dumps(_tree(store, conversation), indent=2, ensure_ascii=False) + "\n"
    path = store.path(conversation_id)
    write = _markdown if kind == "markdown" else _html
    return write(store, conversation, path)


def export_name(conversation: Conversation, kind: str) -> str:
    """A name for the file that any system takes."""
    words = "".join(c if c.isalnum() else " " for c in conversation.title.lower()).split()
    return f"{'-'.join(words)[:60].strip('-') or 'conversation'}.{FORMATS[kind]}"


def _tree(store: ConversationStore, conversation: Conversation) -> dict[str, Any]:
    messages, votes = store.messages(conversation.id), store.feedback.votes(conversation.id)
    return {
        "kind": _KIND,
        "version": 1,
        "title": conversation.title,
        "created_s": conversation.created_s,
        "settings": to_mapping(conversation.settings),
        "active_root": conversation.active_root,
        "messages": [
            message.described()
            | {
                "info": {k: v for k, v in message.info.items() if k in _KEPT_INFO},
                "edit_of": message.info.get("edit_of"),
                "feedback": dataclasses.asdict(votes[message.id]) if message.id in votes else None,
                "attachments": [
                    {"name": found.name, "text": found.text}
                    for found in map(store.attachments.get, message.attachment_ids)
                ],
            }
            for message in messages
        ],
    }


def _who(message: Message) -> str:
    name = "You" if message.role == "user" else message.model or "Assistant"
    return name + ("" if message.state == "whole" else f" ({message.state})")


def _attached(store: ConversationStore, message: Message) -> list[str]:
    return [store.attachments.get(found).name for found in message.attachment_ids]


def _markdown(store: ConversationStore, about: Conversation, path: Sequence[Message]) -> str:
    lines = [f"# {about.title or 'Conversation'}\n"]
    if about.settings.system:
        lines.append("> " + about.settings.system.replace("\n", "\n> ") + "\n")
    for message in path:
        lines.append(f"## {_who(message)}\n")
        lines += [f"*Attached: {name}*\n" for name in _attached(store, message)]
        lines.append(message.content.strip() + "\n")
    return "\n".join(lines)


def _html(store: ConversationStore, about: Conversation, path: Sequence[Message]) -> str:
    title = html.escape(about.title or "Conversation")
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>",
    ]
    if about.settings.system:
        parts.append(f'<p class="who m">{html.escape(about.settings.system)}</p>')
    for message in path:
        names = "".join(f" · {html.escape(name)}" for name in _attached(store, message))
        who = f'<div class="who">{html.escape(_who(message))}{names}</div>'
        text = html.escape(message.content.strip())
        parts.append(f'<div class="m {message.role}">{who}{text}</div>')
    return "\n".join([*parts, "</body></html>\n"])


# --- in ---


def import_conversations(store: ConversationStore, text: str) -> list[Conversation]:
    """Add the conversations of a JSON (or JSON lines) text; all of them, or none.

    Raises: UserError saying which part can't be read, and why.
    """
    entries = list(_entries(text))
    if not entries:
        raise UserError("the file holds no conversation")
    with store.database.change():
        return [_add(store, entry, number) for number, entry in enumerate(entries, 1)]


def _entries(text: str) -> Iterator[Mapping[str, Any]]:
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise UserError("the file is nested too deeply") from error
    except ValueError as error:
        try:
            values = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            raise UserError(f"the file is neither JSON nor JSON lines: {error}") from error
    for value in values if isinstance(values, list) else [values]:
        if not isinstance(value, Mapping):
            raise UserError(f"a conversation must be a JSON object, not {type(value).__name__}")
        yield value


def _add(store: ConversationStore, entry: Mapping[str, Any], number: int) -> Conversation:
    where = f"conversation {number}"
    title = str(entry.get("title") or "")
    if isinstance(entry.get("mapping"), Mapping):
        nodes = list(_hosted(entry["mapping"]))
        system, messages = _without_system(nodes)
    elif isinstance(entry.get("messages"), list):
        system, messages = _without_system([_mapping(m, where) for m in entry["messages"]])
    else:
        raise UserError(f"{where}: has neither messages nor a mapping of them")
    if len(messages) > _MAX_MESSAGES:
        raise UserError(f"{where}: {len(messages):,} messages, {_MAX_MESSAGES:,} are the most")
    settings = ChatSettings(system=system)
    if isinstance(entry.get("settings"), Mapping):
        settings = from_mapping(ChatSettings, entry["settings"], where=f"{where}: settings")
    made = store.create(title, settings)
    ids: dict[str, str] = {}  # theirs -> ours
    active: dict[str | None, str] = {}  # parent -> child; the last one, unless the file says other
    last: str | None = None
    made_of = []
    for place, message in enumerate(messages, 1):
        at = f"{where}, message {place}"
        parent = _parent(message, ids, at) if "parent_id" in message else last
        last = _add_message(store, made.id, message, parent, at, ids)
        _add_feedback(store, last, message)
        made_of.append((last, message.get("active_child")))
        active[parent] = last
        if isinstance(own := message.get("id"), str):
            if own in ids:
                raise UserError(f"{at}: another message has the id {own[:40]!r} as well")
            ids[own] = last
    for above, below in [(None, entry.get("active_root")), *made_of]:
        if isinstance(below, str) and below in ids:
            active[above] = ids[below]
    store.activate(made.id, active)
    if not title and messages:
        store.set(made.id, title=title_of(str(messages[0].get("content", ""))))
    if isinstance(leaf := entry.get("current_node"), str) and leaf in ids:
        store.choose(ids[leaf])
    return store.get(made.id)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: a message must be a JSON object, not {type(value).__name__}")
    return dict(value)


def _parent(message: Mapping[str, Any], ids: Mapping[str, str], where: str) -> str | None:
    told = message["parent_id"]
    if told is None:
        return None
    if not isinstance(told, str) or told not in ids:
        raise UserError(f"{where}: its parent is not among the messages before it")
    return ids[told]


def _add_message(
    store: ConversationStore,
    conversation_id: str,
    message: Mapping[str, Any],
    parent: str | None,
    where: str,
    ids: Mapping[str, str],
) -> str:
    role, content = message.get("role"), message.get("content")
    if role not in get_args(Role):
        raise UserError(f"{where}: the role must be user or assistant, not {role!r}")
    if not isinstance(content, str):
        raise UserError(f"{where}: the content must be a text")
    state = message.get("state", "whole")
    state = "cut" if state == "writing" or state not in get_args(State) else state
    attached = message.get("attachments")
    found = []
    for item in attached if isinstance(attached, list) else []:
        if isinstance(item, Mapping) and isinstance(item.get("text"), str):
            name = str(item.get("name", "attachment")) + ".txt"
            attachment = read_attachment(name, item["text"].encode("utf-8", "replace"))
            found.append(store.attachments.keep(attachment).id)
    info = message.get("info")
    known = {k: v for k, v in info.items() if k in _KEPT_INFO} if isinstance(info, Mapping) else {}
    if isinstance(corrected := message.get("edit_of"), str) and corrected in ids:
        known |= {"edited": True, "edit_of": ids[corrected]}
    return store.add(
        conversation_id,
        cast(Role, role),
        content.encode("utf-8", "replace").decode(),
        parent=parent,
        attachments=found,
        state=cast(State, state),
        active=False,
        model=str(message.get("model") or "")[:200],
        info=known,
    ).id


def _add_feedback(store: ConversationStore, message_id: str, message: Mapping[str, Any]) -> None:
    """The thumb that a message came with; what is none is passed over."""
    given = message.get("feedback")
    vote: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    rating = vote.get("rating")
    if rating in (1, -1) and message.get("role") == "assistant":
        comment = vote.get("comment")
        said = comment[:MAX_COMMENT] if isinstance(comment, str) else ""
        store.feedback.rate(message_id, int(rating), said.encode("utf-8", "replace").decode())


def _without_system(messages: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The first system message, and all that people and models said, hung where that hung."""
    hidden = [m for m in messages if m.get("role") in ("system", "developer", "tool")]
    above = {m["id"]: m.get("parent_id") for m in hidden if isinstance(m.get("id"), str)}
    rest = [m for m in messages if m.get("role") not in ("system", "developer", "tool")]
    for message in rest:
        seen: set[str] = set()
        told = message.get("parent_id")
        while isinstance(told, str) and told in above and told not in seen:
            seen.add(told)
            told = message["parent_id"] = above[told]
    texts = [m["content"] for m in hidden if m.get("role") != "tool" and m.get("content")]
    return str(texts[0]) if texts else "", rest


def _hosted(mapping: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a hosted chat's export, parents before children."""
    waiting = [key for key, node in mapping.items() if not _parent_of(node, mapping)]
    seen = set()
    while waiting:
        key = waiting.pop(0)
        node = mapping.get(key)
        if key in seen or not isinstance(node, Mapping):
            continue
        seen.add(key)
        waiting += [child for child in node.get("children") or () if isinstance(child, str)]
        message = node.get("message")
        message = message if isinstance(message, Mapping) else {}
        author = message.get("author")
        role = author.get("role") if isinstance(author, Mapping) else None
        content = message.get("content")
        parts = content.get("parts") if isinstance(content, Mapping) else None
        text = "\n".join(part for part in parts or () if isinstance(part, str))
        yield {
            "id": key,
            "parent_id": _parent_of(node, mapping),
            "role": role if role in ("user", "assistant") and text.strip() else "system",
            "content": text,
            "model": "",
            "created_s": message.get("create_time") or time.time(),
        }


def _parent_of(node: Any, mapping: Mapping[str, Any]) -> str | None:
    parent = node.get("parent") if isinstance(node, Mapping) else None
    return parent if isinstance(parent, str) and parent in mapping else None
