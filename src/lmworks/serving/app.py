"""The application: models by name in, an OpenAI-compatible API and a chat page out.

| path | file |
|---|---|
| `POST /v1/chat/completions` | `chat_completions.py` |
| `POST /v1/completions` | `completions.py` |
| `GET`, `DELETE /v1/streams/ID` | `streams.py` |
| `GET /v1/models`, `/v1/models/NAME` | `models.py` |
| `GET /health`, `/ready`, `/metrics` | `health.py` |
| `GET /` | `page.py` |

A further family is one file and one line in `apis.py`. Bodies are read and checked by us and not by
the framework, so that every fault leaves in OpenAI's shape and a body over the limit is refused
before it is in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fastapi import FastAPI

from lmworks.inference.base import ChatModel
from lmworks.serving.apis import add_apis
from lmworks.serving.catalogue import Models
from lmworks.serving.errors import install_error_handlers
from lmworks.serving.guard import HostGuard
from lmworks.serving.live_streams import GRACE_S
from lmworks.serving.service import MAX_BODY_BYTES, Service
from lmworks.serving.tracing import Tracing
from lmworks.serving.watching import WatchMiddleware


def create_app(
    models: Models | Mapping[str, ChatModel],
    *,
    allowed_hosts: Collection[str] | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    grace_s: float = GRACE_S,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The ASGI application over `models`; the first one is the chat page's choice.

    Args:
        allowed_hosts: names that requests may address it by; None: any. See `guard`.
        grace_s: how long a resumable stream waits for its reader to come back.
        tracing: makes OpenTelemetry spans; by default there are none.
    """
    service = Service(models, max_body_bytes=max_body_bytes, grace_s=grace_s, tracing=tracing)
    app = FastAPI(title="lmworks", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    install_error_handlers(app)
    if allowed_hosts is not None:
        app.add_middleware(HostGuard, hosts=allowed_hosts)
    app.add_middleware(WatchMiddleware, metrics=service.metrics, tracing=service.tracing)
    add_apis(app, service)
    return app
