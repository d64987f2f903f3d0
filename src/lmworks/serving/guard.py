"""Who may ask a server that is meant for this machine only.

A page of another site, open in the same browser, can reach 127.0.0.1: by a name of its own that it
points there (DNS rebinding), or by sending a form across. The first is told by the `Host` header,
the second by `Origin`, and so is a WebSocket, which no browser holds back from another site.
Clients that are no browsers send the right `Host` and no `Origin`.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lmworks.serving.errors import ApiError

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class HostGuard:
    """Refuses requests (403) whose `Host` or `Origin` is not one of `hosts`."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        kind = scope["type"]
        error = self._refusal(Headers(scope=scope)) if kind in ("http", "websocket") else None
        if error is None:
            await self._app(scope, receive, send)
        elif kind == "http":
            await error.response(scope["path"])(scope, receive, send)
        else:  # closed before it was accepted: the client sees a 403
            await send({"type": "websocket.close", "code": 1008, "reason": error.message[:120]})

    def _refusal(self, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if _name("//" + host) not in self._hosts:
            message = f"this server answers as {', '.join(sorted(self._hosts))}, not as {host!r}"
            return ApiError(403, message, code="host_not_allowed")
        if origin is not None and urlsplit(origin).netloc != host:
            message = f"pages of {origin!r} may not use this server"
            return ApiError(403, message, code="origin_not_allowed")
        return None


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
