"""Who asks, as far as a request's headers say.

Nothing here is a right: this server has no keys (the gateway has). A name decides with whom a
request shares its turn, a priority who goes first, and an id is what a log and a client's report
have in common.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import uuid
from typing import Any

from starlette.requests import HTTPConnection

from lmworks.serving.errors import ApiError

MAX_PRIORITY = 100
REQUEST_ID = "request_id"  # its key in the state of an ASGI scope
_SANE = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
# OpenAI's words for it.
_TIERS = {"priority": 10, "flex": -10}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caller:
    """One request's origin.

    Attributes:
        client: the name that fairness between clients goes by.
        priority: higher goes first, -100 to 100.
        request_id: of this request alone, unless the client gave one.
        span: of the HTTP request, if there is one.
    """

    client: str
    priority: int
    request_id: str
    span: Any = dataclasses.field(default=None, repr=False)

    @classmethod
    def of(cls, http: HTTPConnection, request: Any = None) -> Caller:
        """From `X-Client`, `X-Priority`, the key and the address; a request's own `user`,
        `priority` and `service_tier` say more than a key and less than a header.

        Raises: ApiError (400) for a priority that is none.
        """
        asked = getattr(request, "priority", None)
        if asked is None:
            asked = _TIERS.get(getattr(request, "service_tier", None) or "", 0)
        return cls(
            client=_client(http, getattr(request, "user", None)),
            priority=_priority(http.headers.get("x-priority"), asked),
            request_id=request_id(http.scope),
            span=http.scope.get("state", {}).get("span"),
        )


def request_id(scope: Any) -> str:
    """The id of a request: the one it brings, if it is sane, else one of ours."""
    state = scope.setdefault("state", {})
    if REQUEST_ID not in state:
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        state[REQUEST_ID] = given if _SANE.fullmatch(given) else f"req_{uuid.uuid4().hex}"
    return str(state[REQUEST_ID])


def _client(http: HTTPConnection, user: str | None) -> str:
    if _SANE.fullmatch(named := http.headers.get("x-client", "")):
        return f"client:{named}"
    if user:
        return f"user:{_digest(user)}"
    if key := http.headers.get("authorization") or http.headers.get("x-api-key"):
        return f"key:{_digest(key)}"
    return f"address:{http.client.host if http.client else ''}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _priority(header: str | None, asked: int) -> int:
    if header is not None:
        if not re.fullmatch(r"-?[0-9]{1,3}", header):
            raise ApiError(400, f"X-Priority: must be a whole number, not {header[:20]!r}")
        asked = int(header)
    if not -MAX_PRIORITY <= asked <= MAX_PRIORITY:
        message = f"priority: must be from {-MAX_PRIORITY} to {MAX_PRIORITY}, not {asked}"
        raise ApiError(400, message, param="priority", code="invalid_value")
    return asked
