"""`GET /v1/models`, `/v1/models/NAME`: what there is to ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from lmworks.serving.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    def entry(described: Mapping[str, Any]) -> dict[str, Any]:
        fixed = {"object": "model", "created": service.started, "owned_by": "lmworks"}
        return {"id": described["id"], **fixed, **described}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [entry(each) for each in service.models.describe()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        service.check_name(name)
        described = {each["id"]: each for each in service.models.describe()}
        return entry(described.get(name, {"id": name}))
