"""What a request says of itself in its headers: whose it is, and what to call it.

Only these are read, and none is passed on, so nothing that a client puts into a header reaches a
back end.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

from fastapi import Request

from lmworks.serving.errors import ApiError

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")


def given_key(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The one key in the headers. Raises: ApiError (401) for none, several, or a strange one."""
    given = [(name, value) for name, value in headers if name in _KEY_HEADERS]
    if not given:
        raise unauthorized("no key: send it as `Authorization: Bearer lmw_...`")
    keys = set()
    for name, value in given:
        text = value.decode("latin-1")
        if name == b"authorization":
            scheme, _, text = text.partition(" ")
            if scheme.lower() != "bearer":
                raise unauthorized("the Authorization header must be `Bearer lmw_...`")
        keys.add(text.strip(" \t"))
    if len(keys) > 1:
        raise unauthorized("several different keys in one request: send one")
    return keys.pop()


def unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")


def request_id(http: Request) -> str:
    """The client's own id with a part that nobody can guess, or a new one."""
    given = http.headers.get("x-request-id", "")
    new = secrets.token_hex(8)
    return f"{given}-{new}" if _REQUEST_ID.fullmatch(given) else f"req-{new}"
