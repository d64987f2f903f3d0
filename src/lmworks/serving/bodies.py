"""Bodies of requests, read and checked by us: up to a limit, and with errors of the API's shape."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import Request

from lmworks.serving.errors import ApiError

BODY_S = 60.0


async def read_body(http: Request, limit: int) -> bytes:
    """The body.

    Raises: ApiError (413) for one over `limit` bytes, before it is in memory; (408) for one that
        does not come.
    """
    body = bytearray()
    too_large = ApiError(413, f"the body is over {limit} bytes", code="body_too_large")
    if int(http.headers.get("content-length") or 0) > limit:
        raise too_large
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in http.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        message = f"the body did not come whole within {BODY_S:g} s"
        raise ApiError(408, message, code="body_too_slow") from None
    return bytes(body)


async def read_json(http: Request, limit: int) -> Any:
    """The JSON of the body. Raises: ApiError (413, 400)."""
    body = await read_body(http, limit)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"the body is not JSON: {reason}", code="invalid_json") from None
