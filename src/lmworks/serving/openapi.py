"""`/openapi.json`: the whole API, made from the types that its requests are checked by."""

from __future__ import annotations

import functools
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import lmworks
from lmworks.inference.sampling import MAX_LOGPROBS
from lmworks.serving.callers import MAX_PRIORITY

_REF = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS = {
    status: {
        "description": text,
        "content": {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}},
    }
    for status, text in {"4XX": "The request is at fault.", "5XX": "The server is."}.items()
}


# What `Sampling` checks once the request is read.
_BOUNDS: dict[str, tuple[float, float | None]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (0, None),
    "min_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "max_tokens": (1, None),
    "max_completion_tokens": (1, None),
    "max_output_tokens": (1, None),
    "top_logprobs": (0, MAX_LOGPROBS),
    "priority": (-MAX_PRIORITY, MAX_PRIORITY),
}


def _with_bounds(schema: dict[str, Any]) -> None:
    for name, (low, high) in _BOUNDS.items():
        about = schema.get("properties", {}).get(name, {})
        for kind in about.get("anyOf", [about]):
            if kind.get("type") in ("number", "integer"):
                kind |= {"minimum": low} | ({} if high is None else {"maximum": high})


def takes(app: FastAPI, request: type[BaseModel], *, streams: bool = False) -> dict[str, Any]:
    """Keyword arguments for a route whose body is a `request`, which the route reads itself.

    Args:
        streams: whether the answer may come as server-sent events.
    """
    bodies: dict[str, type[BaseModel]] = app.state.__dict__.setdefault("bodies", {})
    bodies[request.__name__] = request
    schema = {"$ref": _REF.format(model=request.__name__)}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    extra: dict[str, Any] = {"requestBody": body}
    if streams:
        content = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}
        extra["responses"] = {"200": {"description": "The answer.", "content": content}}
    return {"openapi_extra": extra}


def install_openapi(app: FastAPI) -> None:
    """Serve the description; it is made at the first look at it."""

    @functools.cache
    def description() -> dict[str, Any]:
        document = get_openapi(
            title="lmworks",
            version=lmworks.__version__,
            summary="Language models over the APIs that clients know.",
            routes=app.routes,
        )
        bodies: dict[str, type[BaseModel]] = getattr(app.state, "bodies", {})
        _, found = models_json_schema(
            [(body, "validation") for body in bodies.values()], ref_template=_REF
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas |= found.get("$defs", {}) | {"Error": _ERROR}
        for schema in schemas.values():
            _with_bounds(schema)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)  # the framework's own; ours is a 400
                operation["responses"] |= _ERRORS
        return document

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return description()
