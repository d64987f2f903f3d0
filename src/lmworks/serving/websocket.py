"""`/v1/stream`: chat requests over a WebSocket, several at a time.

Each message is a JSON object. From the client:

| `type` | |
|---|---|
| `request` | `id` (any text, free again after its answer), `request`: as in chat completions |
| `cancel` | `id`: end that answer |
| `ping` | is answered with `pong` |

To the client, each with the `id`: `event` (`data`: a chunk as in SSE), then one of `done`,
`cancelled`, `error` (`error` as in HTTP). A lost connection ends its answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from lmworks.serving import streaming
from lmworks.serving.callers import Caller
from lmworks.serving.chat_completions import ChatCompletionRequest
from lmworks.serving.errors import ApiError, as_api_error
from lmworks.serving.openai_types import parse
from lmworks.serving.service import Service
from lmworks.serving.streaming import DONE

MAX_AT_A_TIME = 32
_MAX_ID = 200


class Connection:
    """One client's WebSocket and the answers that run on it."""

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket, self._service = socket, service
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Serve it until it is closed."""
        await self._socket.accept()
        try:
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await self._receive(message.get("text") or message.get("bytes") or "")
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self, data: str | bytes) -> None:
        name: Any = None
        try:
            message = _message(data, self._service.max_body_bytes)
            name, kind = message.get("id"), message.get("type")
            if kind == "ping":
                await self._send(type="pong", **({"id": name} if name is not None else {}))
            elif kind == "request":
                await self._begin(_checked_id(name), message.get("request"))
            elif kind == "cancel":
                if (task := self._tasks.get(_checked_id(name))) is None:
                    raise ApiError(404, f"no answer called {name!r} is being made", param="id")
                task.cancel()
            else:
                raise ApiError(400, "type: must be request, cancel or ping", param="type")
        except ApiError as error:
            await self._send(type="error", id=name, **error.body())

    async def _begin(self, name: str, values: Any) -> None:
        if name in self._tasks:
            raise ApiError(400, f"id: an answer called {name!r} is being made", param="id")
        if len(self._tasks) >= MAX_AT_A_TIME:
            message = f"{MAX_AT_A_TIME} answers are being made on this connection already"
            raise ApiError(429, message, code="too_many_streams")
        if isinstance(values, dict):
            values = {**values, "stream": True}
        request = parse(ChatCompletionRequest, values)
        self._tasks[name] = asyncio.create_task(self._answer(name, request))
        # Let it begin: the next message may be here already and cancel it, and a task that is
        # cancelled before its first step ends without a word and would keep its id.
        await asyncio.sleep(0)

    async def _answer(self, name: str, request: ChatCompletionRequest) -> None:
        last: dict[str, Any] = {"type": "done"}
        try:
            running = await self._service.start(request, Caller.of(self._socket, request))
            try:
                async for event in running.events():
                    if event is DONE:
                        break
                    assert not isinstance(event.data, str)
                    if "error" in event.data:
                        last = {"type": "error", **event.data}
                    else:
                        await self._send(type="event", id=name, data=event.data)
            finally:
                running.end()
        except asyncio.CancelledError:
            last = {"type": "cancelled"}
        except Exception as error:
            last = {"type": "error", **as_api_error(error).body()}
        del self._tasks[name]  # before the client hears of it, who may use the id again
        await self._send(id=name, **last)

    async def _send(self, **message: Any) -> None:
        """Send a message; a client that takes nothing for too long is closed."""
        text = json.dumps(message, ensure_ascii=False)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it is closed
            async with self._sending:
                try:
                    async with asyncio.timeout(streaming.STALL_S):
                        await self._socket.send_text(text)
                except TimeoutError:
                    await self._socket.close(1008, "nothing was read for too long")


def _message(data: str | bytes, limit: int) -> dict[str, Any]:
    if len(data) > limit:
        raise ApiError(413, f"the message is over {limit} bytes", code="body_too_large")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise ApiError(400, "the message is not JSON", code="invalid_json") from None
    if not isinstance(message, dict):
        raise ApiError(400, "the message must be a JSON object")
    return message


def _checked_id(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_ID:
        raise ApiError(400, f"id: must be a text of 1 to {_MAX_ID} characters", param="id")
    return name


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        await Connection(socket, service).run()

    @app.get("/v1/stream", include_in_schema=False)
    async def no_websocket() -> Response:
        message = 'this is a WebSocket; the server needs the package websockets: "pip install" it'
        raise ApiError(426, message, code="upgrade_required")
