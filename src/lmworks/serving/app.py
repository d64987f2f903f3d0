"""The application: models by name in, an OpenAI-compatible API and a chat page out.

| path | file |
|---|---|
| `POST /v1/chat/completions` | `chat_completions.py` |
| `POST /v1/completions` | `completions.py` |
| `POST /v1/responses` and what belongs to it | `responses.py` |
| `POST /v1/messages`, `/v1/messages/count_tokens` | `messages.py` |
| `/v1/stream`, a WebSocket | `websocket.py` |
| `GET`, `DELETE /v1/streams/ID` | `streams.py` |
| `POST /v1/embeddings` | `embeddings.py` |
| `POST /v1/rerank` | `rerank.py` |
| `GET /v1/models`, `/v1/models/NAME`, `POST /v1/models/load`, `/unload` | `models.py` |
| `GET /health`, `/ready`, `/metrics` | `health.py` |
| `/api/...`: what the chat page asks for | `conversations/routes.py` |
| `GET /` | `page.py` |
| `GET /openapi.json` | `openapi.py` |

A further family is one file and one line in `apis.py`. Bodies are read and checked by us and not by
the framework, so that every fault leaves in OpenAI's shape and a body over the limit is refused
before it is in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fastapi import FastAPI

from lmworks.inference.base import ChatModel
from lmworks.serving.apis import add_apis
from lmworks.serving.catalogue import Models
from lmworks.serving.errors import install_error_handlers
from lmworks.serving.guard import HostGuard
from lmworks.serving.openapi import install_openapi
from lmworks.serving.service import Service
from lmworks.serving.watching import WatchMiddleware


def create_app(
    models: Models | Mapping[str, ChatModel],
    *,
    allowed_hosts: Collection[str] | None = None,
    **options: Any,
) -> FastAPI:
    """The ASGI application over `models`; the first one is the chat page's choice.

    Args:
        allowed_hosts: names that requests may address it by; None: any. See `guard`.
        options: of `Service`: the bound on bodies, times, where things are kept.
    """
    service = Service(models, **options)
    app = FastAPI(title="lmworks", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    install_error_handlers(app)
    if allowed_hosts is not None:
        app.add_middleware(HostGuard, hosts=allowed_hosts)
    app.add_middleware(WatchMiddleware, metrics=service.metrics, tracing=service.tracing)
    add_apis(app, service)
    install_openapi(app)
    return app
