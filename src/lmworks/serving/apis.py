"""The endpoint families of the server: one file each, one line each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from lmworks.serving.service import Service

AddRoutes = Callable[["FastAPI", "Service"], None]

# `add_routes(app, service)` of each, in the order in which paths are looked up.
APIS: tuple[str, ...] = (
    "lmworks.serving.chat_completions:add_routes",
    "lmworks.serving.completions:add_routes",
    "lmworks.serving.responses:add_routes",
    "lmworks.serving.messages:add_routes",
    "lmworks.serving.websocket:add_routes",
    "lmworks.serving.embeddings:add_routes",
    "lmworks.serving.rerank:add_routes",
    "lmworks.serving.feedback.routes:add_routes",
    "lmworks.serving.streams:add_routes",
    "lmworks.serving.models:add_routes",
    "lmworks.serving.health:add_routes",
    "lmworks.serving.conversations.routes:add_routes",
    "lmworks.serving.page:add_routes",
)


def add_apis(app: FastAPI, service: Service) -> None:
    """Put the routes of every family on `app`."""
    for target in APIS:
        module, name = target.split(":")
        add_routes: AddRoutes = getattr(importlib.import_module(module), name)
        add_routes(app, service)
