"""The gateway as an ASGI application.

| path | who | |
|---|---|---|
| `POST /v1/chat/completions`, `completions`, `embeddings`, ... | a key | answers |
| `GET /v1/models`, `/v1/models/NAME` | a key | what it may use |
| `GET /v1/key` | a key | its own limits, and what is left |
| `/admin/...` | an admin key | see `admin` |
| `GET /health`, `/ready`, `/metrics` | anybody | for those who watch it |
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

import lmworks
from lmworks.serving.errors import install_error_handlers, model_not_found
from lmworks.serving.gateway.admin import add_admin_routes
from lmworks.serving.gateway.door import ENDPOINTS, Door
from lmworks.serving.gateway.limits import NANO
from lmworks.serving.prometheus import CONTENT_TYPE


def create_gateway_app(door: Door) -> FastAPI:
    """The application over a door; its lifespan starts and closes it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await door.start()
        yield
        await door.close()

    app = FastAPI(
        title="lmworks gateway", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.state.door = door
    install_error_handlers(app)

    async def answer(http: Request, path: str) -> Response:
        return await door.handle(http, path)

    for path in ENDPOINTS:
        app.router.add_route("/v1" + path, functools.partial(answer, path=path), methods=["POST"])
    _add_client_routes(app, door)
    _add_watching_routes(app, door)
    add_admin_routes(app, door)
    return app


def _add_client_routes(app: FastAPI, door: Door) -> None:
    def entry(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": door.started, "owned_by": "lmworks"}

    @app.get("/v1/models")
    async def models(http: Request) -> dict[str, Any]:
        names = door.models_of(await door.key(http))
        return {"object": "list", "data": [entry(name) for name in names]}

    @app.get("/v1/models/{name:path}")
    async def one_model(http: Request, name: str) -> dict[str, Any]:
        names = door.models_of(await door.key(http))
        if name not in names:
            raise model_not_found(name[:200], names)
        return entry(name)

    @app.get("/v1/key")
    async def own_key(http: Request) -> dict[str, Any]:
        key = await door.key(http)
        limits = key.limits.over(door.defaults)
        left = await door.ledger.left(key, limits)
        shown: dict[str, float] = {n: max(0, v) for n, v in left.items() if n != "nano"}
        if "nano" in left:
            shown["money"] = max(0, left["nano"]) / NANO
        return {"id": key.id, "name": key.name, "limits": limits.plain(), "left": shown}


def _add_watching_routes(app: FastAPI, door: Door) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": lmworks.__version__}

    @app.get("/ready")
    async def ready() -> Response:
        up = sorted(name for name, backend in door.backends.items() if backend.available)
        well = bool(up) and not door.draining
        status = "draining" if door.draining else "ok" if up else "no back end is up"
        return JSONResponse({"status": status, "backends_up": len(up)}, 200 if well else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(door.metrics.render(door.backends), media_type=CONTENT_TYPE)
