"""`GET /health`, `/metrics`: for those who watch the server."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

import lmworks
from lmworks.serving.metrics import CONTENT_TYPE
from lmworks.serving.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    @app.get("/health")
    async def health() -> dict[str, Any]:
        names = list(service.models.names())
        return {"status": "ok", "version": lmworks.__version__, "models": names}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)
