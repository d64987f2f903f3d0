"""`GET /health`, `/ready`, `/metrics`: for those who watch the server.

`/health` answers as long as the process lives; `/ready` says 503 once it takes no new requests, so
that a balancer sends them elsewhere while running answers finish.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

import lmworks
from lmworks.serving.prometheus import CONTENT_TYPE
from lmworks.serving.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    @app.get("/health")
    async def health() -> dict[str, Any]:
        names = list(service.models.names())
        return {"status": "ok", "version": lmworks.__version__, "models": names}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        state = "draining" if service.draining else "ready"
        engines = service.metrics.engines().values()
        body = {
            "status": state,
            "answers": service.num_running,
            "queue": sum(engine.num_waiting for engine in engines),
        }
        headers = {"Retry-After": "1"} if service.draining else None
        return JSONResponse(body, 503 if service.draining else 200, headers)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)
