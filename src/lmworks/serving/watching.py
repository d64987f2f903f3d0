"""What is seen of every HTTP request: a count, an id, a line in the log, a span. Of a WebSocket it
is the id and the line, once it is closed.

The outermost layer, so that refusals are seen too. A path counts as its route, since paths come
from outside: whatever is no route of ours is `other`.
"""

from __future__ import annotations

import time
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmworks.serving.callers import request_id
from lmworks.serving.errors import CLIENT_LEFT
from lmworks.serving.json_log import log_request
from lmworks.serving.metrics import Metrics
from lmworks.serving.tracing import Tracing


class WatchMiddleware:
    """Watches every HTTP request to its end; a client that left counts as 499."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self._app, self._metrics, self._tracing = app, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and watch the answer."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s, status = time.monotonic(), CLIENT_LEFT
        name = request_id(scope)
        span = self._tracing.request(scope)

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = name
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            seconds, endpoint = time.monotonic() - started_s, endpoint_of(scope)
            self._metrics.count_request(endpoint, status, seconds)
            span.end(endpoint, status)
            log_request(name, scope["method"], endpoint, status, seconds)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_s, status = time.monotonic(), CLIENT_LEFT
        name = request_id(scope)  # the answers on it have the same

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "websocket.accept":
                status = 101
            elif message["type"] == "websocket.close" and status == CLIENT_LEFT:
                status = 403  # what a client sees of one that is closed before it was accepted
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            log_request(name, "GET", endpoint_of(scope), status, time.monotonic() - started_s)


def endpoint_of(scope: Any) -> str:
    """The route that a request took."""
    return getattr(scope.get("route"), "path", "other")
