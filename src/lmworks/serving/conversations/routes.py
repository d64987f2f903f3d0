"""The API of the chat page, under /api: conversations, answers, attachments, prompts, models.

| path | |
|---|---|
| `GET, POST /api/conversations` | the list (`?query=` searches), a new one |
| `GET, PATCH, DELETE /api/conversations/ID` | the whole tree; title and settings; delete |
| `POST .../ID/restore`, `.../ID/forget` | undo a delete; delete for good |
| `POST .../ID/answers` | ask: a question (or a version of one) in, both messages out |
| `POST .../ID/messages/M/regenerate`, `edit`, `choose`, `stop` | what their names say |
| `POST .../ID/messages/M/feedback` | a thumb up or down, or none |
| `GET .../ID/messages/M/events` | follow an answer, from any character on |
| `GET .../ID/memory`, `.../ID/messages/M/memory` | what the model would be sent now, what it was |
| `GET .../ID/export?format=`, `POST /api/conversations/import` | files |
| `POST /api/attachments?name=`, `GET /api/attachments/ID` | a file in, its text out |
| `GET, POST /api/prompts`, `DELETE /api/prompts/ID` | the prompt library |
| `GET /api/models` | the models with their context, memory and speed |

Bodies are JSON, but for attachments, which are the file itself. Errors are those of the other
endpoints. The answers are written by the server (`runs`), so leaving a page ends none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from lmworks.core.config import to_mapping
from lmworks.core.errors import UserError
from lmworks.serving.bodies import read_body, read_json
from lmworks.serving.conversations.answers import plan_answer
from lmworks.serving.conversations.attachments import MAX_ATTACHMENT_BYTES
from lmworks.serving.conversations.files import export, export_name, import_conversations
from lmworks.serving.conversations.models import described, model_name
from lmworks.serving.conversations.prompts import Prompt
from lmworks.serving.conversations.runs import Runs
from lmworks.serving.conversations.store import ConversationStore
from lmworks.serving.conversations.values import (
    Attachment,
    ChatSettings,
    Conversation,
    Message,
    NotFound,
)
from lmworks.serving.errors import ApiError
from lmworks.serving.feedback.values import RATINGS, Vote
from lmworks.serving.service import Service
from lmworks.serving.streaming import Event, EventStream

MAX_IMPORT_BYTES = 64 << 20
_TYPES = {
    "markdown": "text/markdown; charset=utf-8",
    "json": "application/json",
    "html": "text/html; charset=utf-8",
}
T = TypeVar("T")


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""
    runs = Runs(service, service.conversations, service.encoder)
    service.add_answers(runs)
    service.on_close(service.conversations.close)
    _add_conversations(app, service, runs)
    _add_messages(app, service, runs)
    _add_files(app, service)
    _add_library(app, service, runs)
    for route in app.routes:
        # The page's own: clients have /v1, which is described.
        if getattr(route, "path", "").startswith("/api/"):
            route.include_in_schema = False  # type: ignore[attr-defined]


async def _work(function: Callable[..., T], *values: Any, **named: Any) -> T:
    """Run beside the event loop, as the disk may take its time; what is not there is a 404."""
    try:
        return await asyncio.to_thread(function, *values, **named)
    except NotFound as error:
        raise ApiError(404, str(error), code="not_found") from None


async def _fields(http: Request, service: Service, **kinds: Any) -> dict[str, Any]:
    """The JSON object of the body, with fields of these names and kinds only."""
    values = await read_json(http, service.max_body_bytes)
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object")
    for name, value in values.items():
        if name not in kinds:
            raise ApiError(400, f"{name}: unknown field; known: {', '.join(kinds)}", param=name)
        if not isinstance(value, kinds[name]):
            message = f"{name}: must be a JSON {_KINDS[kinds[name]]}"
            raise ApiError(400, message, param=name, code="invalid_type")
        _check_text(name, value)
    return values


_KINDS: dict[Any, str] = {
    str: "string",
    dict: "object",
    list: "array",
    bool: "boolean",
    (str, type(None)): "string or null",
}


def _check_text(name: str, value: Any) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            message = f"{name}: holds a lone surrogate, which is no valid Unicode text"
            raise ApiError(400, message, param=name, code="invalid_type") from None
    inner = value.values() if isinstance(value, dict) else value
    for item in inner if isinstance(value, dict | list) else ():
        _check_text(name, item)


def _add_conversations(app: FastAPI, service: Service, runs: Runs) -> None:
    store = service.conversations

    @app.get("/api/conversations")
    async def recent(http: Request) -> Any:
        query = http.query_params.get("query", "").strip()
        if query:
            found = await _work(store.search, query)
            items = [
                {
                    "id": item.conversation_id,
                    "title": item.title,
                    "changed_s": item.changed_s,
                    "message_id": item.message_id,
                    "excerpt": item.excerpt,
                }
                for item in found
            ]
        else:
            before = _number(http.query_params.get("before"))
            items = [_entry(item) for item in await _work(store.recent, 200, before)]
        running = runs.conversation_ids
        return {"conversations": [item | {"running": item["id"] in running} for item in items]}

    @app.post("/api/conversations")
    async def create(http: Request) -> Any:
        fields = await _fields(http, service, title=str, settings=dict)
        settings = _settings(ChatSettings(), fields)
        made = await _work(store.create, fields.get("title", ""), settings)
        return JSONResponse(_entry(made), 201)

    @app.get("/api/conversations/{conversation_id}")
    async def one(conversation_id: str) -> Any:
        return await _work(_whole, store, conversation_id)

    @app.patch("/api/conversations/{conversation_id}")
    async def change(conversation_id: str, http: Request) -> Any:
        fields = await _fields(http, service, title=str, settings=dict)
        before = await _work(store.get, conversation_id)
        made = await _work(
            store.set,
            conversation_id,
            title=fields.get("title"),
            settings=_settings(before.settings, fields),
        )
        return _entry(made)

    @app.delete("/api/conversations/{conversation_id}")
    async def delete(conversation_id: str) -> Any:
        await _work(store.delete, conversation_id)
        return {"deleted": conversation_id}

    @app.post("/api/conversations/{conversation_id}/restore")
    async def restore(conversation_id: str) -> Any:
        await _work(store.restore, conversation_id)
        return _entry(await _work(store.get, conversation_id))

    @app.post("/api/conversations/{conversation_id}/forget")
    async def forget(conversation_id: str) -> Any:
        await _work(store.forget, conversation_id)
        return {"forgotten": conversation_id}

    @app.get("/api/conversations/{conversation_id}/memory")
    async def memory(conversation_id: str, http: Request) -> Any:
        conversation = await _work(store.get, conversation_id)
        path = await _work(store.path, conversation_id, http.query_params.get("leaf"))
        while path and path[-1].role != "user":
            path = path[:-1]
        if not path:
            raise ApiError(400, "nothing was asked yet: there is nothing to send")
        name = model_name(service, conversation.settings)
        model = await service.model(name)
        plan = await _work(plan_answer, store, path, model, conversation.settings, runs.encoder)
        return plan.described()


def _add_messages(app: FastAPI, service: Service, runs: Runs) -> None:
    store = service.conversations
    one = "/api/conversations/{conversation_id}/messages/{message_id}"

    async def in_conversation(conversation_id: str, message_id: str) -> Message:
        message = await _work(store.message, message_id)
        if message.conversation_id != conversation_id:
            raise ApiError(404, f"no message {message_id!r} in this conversation", code="not_found")
        return message

    async def answered(question: Message) -> dict[str, Any]:
        settings = (await _work(store.get, question.conversation_id)).settings
        name = model_name(service, settings)
        service.check_open()
        service.check_name(name)
        answer = await _work(
            store.add,
            *(question.conversation_id, "assistant", ""),
            parent=question.id,
            state="writing",
            model=name,
        )
        runs.start(answer, settings)
        return {"question": _message(store, question), "answer": _message(store, answer)}

    @app.post("/api/conversations/{conversation_id}/answers")
    async def ask(conversation_id: str, http: Request) -> Any:
        fields = await _fields(
            http, service, content=str, parent=(str, type(None)), attachments=list, edited=str
        )
        content = fields.get("content", "")
        if not content.strip():
            raise ApiError(400, "content: the question is empty", param="content")
        if "edited" in fields:
            await in_conversation(conversation_id, fields["edited"])
            return await answered(await _work(store.edit, fields["edited"], content))
        where = {"parent": fields["parent"]} if "parent" in fields else {}
        attachments = [str(item) for item in fields.get("attachments", ())]
        question = await _work(
            store.add, conversation_id, "user", content, attachments=attachments, **where
        )
        return await answered(question)

    @app.post(one + "/regenerate")
    async def regenerate(conversation_id: str, message_id: str) -> Any:
        message = await in_conversation(conversation_id, message_id)
        question = message
        if message.role == "assistant":
            if message.parent_id is None:
                raise ApiError(400, "this answer has no question to answer again")
            question = await _work(store.message, message.parent_id)
        return await answered(question)

    @app.post(one + "/edit")
    async def edit(conversation_id: str, message_id: str, http: Request) -> Any:
        await in_conversation(conversation_id, message_id)
        fields = await _fields(http, service, content=str)
        if not fields.get("content", "").strip():
            raise ApiError(400, "content: the message is empty", param="content")
        return _message(store, await _work(store.edit, message_id, fields["content"]))

    @app.post(one + "/choose")
    async def choose(conversation_id: str, message_id: str) -> Any:
        await in_conversation(conversation_id, message_id)
        await _work(store.choose, message_id)
        return await _work(_whole, store, conversation_id)

    @app.post(one + "/stop")
    async def stop(conversation_id: str, message_id: str) -> Any:
        await in_conversation(conversation_id, message_id)
        return {"stopping": runs.stop(message_id)}

    @app.post(one + "/feedback")
    async def feedback(conversation_id: str, message_id: str, http: Request) -> Any:
        message = await in_conversation(conversation_id, message_id)
        fields = await _fields(http, service, rating=(str, type(None)), comment=str)
        rating = fields.get("rating")
        if rating is not None and rating not in RATINGS:
            said = f"rating: must be up, down or null, not {rating[:40]!r}"
            raise ApiError(400, said, param="rating", code="invalid_value")
        if message.role != "assistant" or message.state == "writing":
            raise ApiError(400, "only answers that are written can be judged")
        comment = fields.get("comment", "").strip()
        await _work(store.feedback.rate, message_id, RATINGS.get(rating or "", 0), comment)
        return _message(store, message, await _work(store.feedback.vote, message_id))

    @app.get(one + "/memory")
    async def sent(conversation_id: str, message_id: str) -> Any:
        message = await in_conversation(conversation_id, message_id)
        if "memory" not in message.info:
            raise ApiError(404, "of this message it is not known what was sent", code="not_found")
        return message.info["memory"]

    @app.get(one + "/events")
    async def events(conversation_id: str, message_id: str, http: Request) -> Any:
        await in_conversation(conversation_id, message_id)
        after = int(_number(http.query_params.get("after")) or 0)

        async def told() -> AsyncGenerator[Event, None]:
            followed = runs.follow(message_id, max(0, after))
            async with contextlib.aclosing(followed):
                async for event in followed:
                    if event.get("done"):
                        stored = await _work(store.message, message_id)
                        event = {"message": _message(store, stored)}
                    yield Event(event)

        return EventStream(told(), lambda: None)


def _add_files(app: FastAPI, service: Service) -> None:
    store = service.conversations

    @app.get("/api/conversations/{conversation_id}/export")
    async def download(conversation_id: str, http: Request) -> Any:
        kind = http.query_params.get("format", "markdown")
        text = await _work(export, store, conversation_id, kind)
        name = export_name(await _work(store.get, conversation_id), kind)
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
        }
        return Response(text, media_type=_TYPES[kind], headers=headers)

    @app.post("/api/conversations/import")
    async def add_file(http: Request) -> Any:
        body = await read_body(http, MAX_IMPORT_BYTES)
        try:
            text = body.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ApiError(400, f"the file is not UTF-8 text (byte {error.start})") from None
        made = await _work(import_conversations, store, text)
        return JSONResponse({"conversations": [_entry(item) for item in made]}, 201)

    @app.post("/api/attachments")
    async def attach(http: Request) -> Any:
        name = http.query_params.get("name", "")
        try:
            body = await read_body(http, MAX_ATTACHMENT_BYTES)
        except ApiError as error:
            if error.status != 413:
                raise
            limit = MAX_ATTACHMENT_BYTES >> 20
            message = f"{name or 'the file'} is over {limit} MB: attach a part of it"
            raise ApiError(413, message, code="body_too_large") from None
        made = await _work(store.attachments.add, name, body)
        return JSONResponse(_attachment(made), 201)

    @app.get("/api/attachments/{attachment_id}")
    async def attached(attachment_id: str) -> Any:
        found = await _work(store.attachments.get, attachment_id)
        return _attachment(found) | {"text": found.text}


def _add_library(app: FastAPI, service: Service, runs: Runs) -> None:
    prompts = service.conversations.prompts

    @app.get("/api/prompts")
    async def library() -> Any:
        return {"prompts": [_prompt(item) for item in await _work(prompts.all)]}

    @app.post("/api/prompts")
    async def save(http: Request) -> Any:
        fields = await _fields(http, service, id=str, name=str, kind=str, text=str)
        values = [fields.get(name, "") for name in ("name", "kind", "text", "id")]
        return JSONResponse(_prompt(await _work(prompts.save, *values)), 201)

    @app.delete("/api/prompts/{prompt_id}")
    async def delete(prompt_id: str) -> Any:
        await _work(prompts.delete, prompt_id)
        return {"deleted": prompt_id}

    @app.get("/api/models")
    async def models() -> Any:
        return {"models": described(service), "recall_by_meaning": runs.encoder is not None}


def _settings(before: ChatSettings, fields: dict[str, Any]) -> ChatSettings:
    given = fields.get("settings")
    if not given:
        return before
    try:
        return before.changed(given)
    except UserError as error:
        raise ApiError(400, str(error), param="settings", code="invalid_value") from None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        raise ApiError(400, f"{text!r} is no number") from None
    if value is not None and not 0 <= value < 1e15:
        raise ApiError(400, f"{text!r} is out of range")
    return value


def _entry(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "title": conversation.title,
        "settings": to_mapping(conversation.settings),
        "created_s": conversation.created_s,
        "changed_s": conversation.changed_s,
        "deleted": conversation.deleted,
    }


def _whole(store: ConversationStore, conversation_id: str) -> dict[str, Any]:
    messages = store.messages(conversation_id)
    conversation, votes = store.get(conversation_id), store.feedback.votes(conversation_id)
    return _entry(conversation) | {
        "active_root": conversation.active_root,
        "messages": [_message(store, message, votes.get(message.id)) for message in messages],
    }


def _message(
    store: ConversationStore, message: Message, vote: Vote | None = None
) -> dict[str, Any]:
    return message.described() | {
        "info": message.info | _memory_counts(message),
        "feedback": {"rating": vote.thumb, "comment": vote.comment} if vote else None,
        "attachments": [
            _attachment(store.attachments.get(found)) for found in message.attachment_ids
        ],
    }


def _memory_counts(message: Message) -> dict[str, Any]:
    """How much was left out and brought back; the whole plan has a path of its own."""
    plan = message.info.get("memory")
    if plan is None:
        return {}
    kinds = [part["kind"] for part in plan["parts"]]
    return {
        "memory": {
            "left_out": sum(item["why"] != "was not answered" for item in plan["left_out"])
            and plan["num_left_out"],
            "recalled": kinds.count("recalled"),
            "noted": "summary" in kinds,
        }
    }


def _attachment(found: Attachment) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name,
        "kind": found.kind,
        "num_bytes": found.num_bytes,
        "characters": len(found.text),
    }


def _prompt(prompt: Prompt) -> dict[str, Any]:
    return to_mapping(prompt) | {"fields": prompt.fields}
