"""`GET` and `DELETE /v1/streams/ID`: go on reading a resumable answer, or end it.

`stream_options.resumable` in a request makes its answer one: each event then has an id. The rest is
`Last-Event-ID` here (or `?after=NUMBER`, to read from anywhere), or in the same request once more.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from lmworks.serving.errors import ApiError
from lmworks.serving.live_streams import parse_event_id
from lmworks.serving.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    @app.get("/v1/streams/{stream_id}")
    async def resume(
        http: Request, stream_id: str, after: Annotated[int, Query(ge=-1, le=999_999_999)] = -1
    ) -> Response:
        if (last := http.headers.get("last-event-id")) is not None:
            named, after = parse_event_id(last)
            if named != stream_id:
                raise ApiError(400, "Last-Event-ID: names an event of another stream")
        return service.resume(stream_id, after)

    @app.delete("/v1/streams/{stream_id}")
    async def end(stream_id: str) -> dict[str, Any]:
        service.streams.get(stream_id).drop()
        return {"id": stream_id, "object": "stream", "deleted": True}
