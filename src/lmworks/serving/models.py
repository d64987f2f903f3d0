"""`GET /v1/models`: what there is to ask, with state, memory and speed; loading and unloading.

`POST /v1/models/load` and `/unload` take `{"model": NAME}`; `/v1/load_lora_adapter` and
`/v1/unload_lora_adapter` take what vLLM's take (`lora_name`, `lora_path`), the path being the name
of a folder in the one that the server was started with. They are for servers with a pool of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from lmworks.core.errors import UserError
from lmworks.serving.bodies import read_json
from lmworks.serving.encoders import in_thread
from lmworks.serving.errors import ApiError, model_not_found
from lmworks.serving.model_pool import ModelPool
from lmworks.serving.openai_types import Strict, Text, parse
from lmworks.serving.openapi import takes
from lmworks.serving.service import Service


class ModelRequest(Strict):
    """Which model."""

    model: str


class LoadAdapterRequest(Strict):
    """As vLLM has it; `base_model_name` may be left out where there is one model."""

    lora_name: Text
    lora_path: Text
    base_model_name: Text | None = None


class UnloadAdapterRequest(Strict):
    """As vLLM has it."""

    lora_name: Text


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    def entry(described: Mapping[str, Any]) -> dict[str, Any]:
        fixed = {"object": "model", "created": service.started, "owned_by": "lmworks"}
        return {"id": described["id"], **fixed, **described}

    async def change(name: str, work: Callable[[ModelPool], Any]) -> Any:
        """Do something to the pool, in a thread: it may wait for answers under way."""
        pool = service.models
        if not isinstance(pool, ModelPool):
            message = "the models of this server were all loaded at its start, and stay"
            raise ApiError(400, message, param="model", code="fixed_models")
        try:
            return await in_thread(lambda: work(pool))
        except KeyError:
            raise model_not_found(name, pool.names()) from None
        except UserError as error:
            if type(error) is UserError:
                raise ApiError(400, str(error), code="invalid_value") from None
            raise

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [entry(each) for each in service.models.describe()]}

    @app.post("/v1/models/load", **takes(app, ModelRequest))
    async def load_model(http: Request) -> Response:
        request = parse(ModelRequest, await read_json(http, service.max_body_bytes))
        described = await change(request.model, lambda pool: pool.load(request.model))
        return JSONResponse(entry(described))

    @app.post("/v1/models/unload", **takes(app, ModelRequest))
    async def unload_model(http: Request) -> Response:
        request = parse(ModelRequest, await read_json(http, service.max_body_bytes))
        described = await change(request.model, lambda pool: pool.unload(request.model))
        return JSONResponse(entry(described))

    @app.post("/v1/load_lora_adapter", **takes(app, LoadAdapterRequest))
    async def load_adapter(http: Request) -> Response:
        request = parse(LoadAdapterRequest, await read_json(http, service.max_body_bytes))
        base = request.base_model_name or ""
        described = await change(
            request.lora_name,
            lambda pool: pool.load_adapter(request.lora_name, request.lora_path, base),
        )
        return JSONResponse(entry(described))

    @app.post("/v1/unload_lora_adapter", **takes(app, UnloadAdapterRequest))
    async def unload_adapter(http: Request) -> Response:
        request = parse(UnloadAdapterRequest, await read_json(http, service.max_body_bytes))
        name = request.lora_name
        await change(name, lambda pool: pool.unload_adapter(name))
        return JSONResponse({"id": name, "object": "model", "deleted": True})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        service.check_name(name)
        described = {each["id"]: each for each in service.models.describe()}
        return entry(described.get(name, {"id": name}))
