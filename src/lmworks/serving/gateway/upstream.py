"""HTTP to one back end: connections that are kept, bytes as they come, failures told by kind.

Nothing that a client sent as a header goes on: the headers are ours, with the back end's own key.
Redirects are not followed, so that key reaches the named host only. httpcore is the layer under
httpx; the one above would parse and decode what is only passed on.
"""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpcore

from lmworks.serving.errors import ApiError
from lmworks.serving.gateway.config import BackendConfig

_MAX_CONNECTIONS, _KEPT, _KEPT_S = 1000, 100, 15.0
_ERROR_BYTES = 64 << 10


class UpstreamFailure(Exception):
    """A back end did not answer as it should; nothing of it has reached the client.

    Attributes:
        kind: connection, timeout, status, stream, body, schema or unsupported; a label of metrics.
        told: for what can't be asked of that back end: the error, if no other can do it either.
        status: of its answer; 0 without one.
        refusal: for an answer that is the client's to see (its request was bad): status and body.
        retry_after_s: how long it asked to be left alone.
    """

    def __init__(
        self,
        backend: str,
        kind: str,
        reason: str,
        *,
        status: int = 0,
        refusal: bytes | None = None,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(f"{backend}: {reason}")
        self.backend, self.kind, self.reason = backend, kind, reason
        self.status, self.refusal, self.retry_after_s = status, refusal, retry_after_s
        self.told: ApiError | None = None


class Response:
    """An answer whose head has come; close it."""

    def __init__(self, backend: str, response: httpcore.Response, timeouts: dict[str, Any]) -> None:
        self._backend, self._response, self._timeouts = backend, response, timeouts
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.headers}

    def wait_between_pieces(self, seconds: float) -> None:
        """How long to wait for the next bytes from here on."""
        self._timeouts["read"] = seconds

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises: UpstreamFailure when it is cut off."""
        with _told(self._backend):
            async for piece in self._response.aiter_stream():
                yield piece

    async def read(self, limit: int) -> bytes:
        """The body. Raises: UpstreamFailure for one over `limit`."""
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > limit:
                raise UpstreamFailure(self._backend, "body", f"an answer of over {limit} bytes")
        return bytes(body)

    async def close(self) -> None:
        """Give the connection back, or drop it in the middle of an answer."""
        with contextlib.suppress(Exception):
            await self._response.aclose()


class Upstream:
    """The connections to one back end."""

    def __init__(self, name: str, config: BackendConfig, headers: dict[str, str]) -> None:
        self.name, self.config = name, config
        url = urlsplit(config.url)
        self._base = config.url.rstrip("/")
        self._headers = [
            (b"host", url.netloc.encode()),
            (b"accept-encoding", b"identity"),
            (b"user-agent", b"lmworks-gateway"),
            *((key.encode(), value.encode()) for key, value in headers.items()),
        ]
        self._pool = _pool(url.scheme, url.hostname or "")

    async def post(self, path: str, body: bytes, wait_s: float, client: str = "") -> Response:
        """Send a JSON body. Raises: UpstreamFailure when no head of an answer comes."""
        headers = [
            *self._headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if client:
            headers.append((b"x-client", client.encode()))
        return await self._send("POST", path, headers, body, wait_s)

    async def get(self, path: str, wait_s: float) -> Response:
        """Ask for a page. Raises: UpstreamFailure."""
        return await self._send("GET", path, self._headers, b"", wait_s)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def _send(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes, wait_s: float
    ) -> Response:
        timeouts = {
            "connect": self.config.connect_s,
            "read": wait_s,
            "write": self.config.idle_s,
            "pool": self.config.connect_s,
        }
        request = httpcore.Request(
            method,
            self._base + path,
            headers=headers,
            content=body,
            extensions={"timeout": timeouts},
        )
        with _told(self.name):
            response = await self._pool.handle_async_request(request)
        return Response(self.name, response, timeouts)


@contextlib.contextmanager
def _told(backend: str) -> Any:
    try:
        yield
    except httpcore.TimeoutException as error:
        kind = "connection" if isinstance(error, httpcore.ConnectTimeout) else "timeout"
        raise UpstreamFailure(backend, kind, "sent nothing in time") from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UpstreamFailure(backend, "connection", text) from error
    except OSError as error:  # a certificate that is not right, for one
        raise UpstreamFailure(backend, "connection", str(error)[:200]) from error


async def refused(backend: str, response: Response) -> UpstreamFailure:
    """The failure that an answer with an error status is; its body is read for the reason."""
    try:
        body = await response.read(_ERROR_BYTES)
    except UpstreamFailure:
        body = b""
    status = response.status
    # What is wrong with the request stays wrong elsewhere. 401, 403 and 404 are about the back
    # end's own key and model names, which the client knows nothing of.
    is_theirs = 400 <= status < 500 and status not in (401, 402, 403, 404, 405, 408, 409, 425, 429)
    return UpstreamFailure(
        backend,
        "status",
        f"answered with status {status}",
        status=status,
        refusal=body if is_theirs else None,
        retry_after_s=_seconds(response.headers.get(b"retry-after", b"")),
    )


def _seconds(value: bytes) -> float:
    try:
        return min(3600.0, max(0.0, float(value)))
    except ValueError:
        return 0.0


def _pool(scheme: str, host: str) -> httpcore.AsyncConnectionPool:
    context = None
    if scheme == "https":
        import httpx

        context = httpx.create_ssl_context()
    settings: dict[str, Any] = {
        "ssl_context": context,
        "max_connections": _MAX_CONNECTIONS,
        "max_keepalive_connections": _KEPT,
        "keepalive_expiry": _KEPT_S,
    }
    proxy = urllib.request.getproxies().get(scheme, "")
    if proxy and not urllib.request.proxy_bypass(host):
        return httpcore.AsyncHTTPProxy(proxy, **settings)
    return httpcore.AsyncConnectionPool(**settings)
