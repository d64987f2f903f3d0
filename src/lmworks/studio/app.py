"""The application: a home page, the pages of the table with their routes, and texts by id.

| path | |
|---|---|
| `GET /`, `GET /NAME` | the home page, a page of `pages.PAGES` |
| `POST /api/texts`, `GET /api/texts/ID` | keep a text (the body, UTF-8), ask for its size |
| `/api/NAME...` | what the page called NAME asks for |

It serves one person on one machine: requests of other hosts and pages are refused, bodies are
limited, work is done in two threads, and what a client no longer waits for is not begun.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from lmworks.core.tables import load_target
from lmworks.serving.bodies import read_body
from lmworks.serving.errors import ApiError, install_error_handlers
from lmworks.serving.guard import LOOPBACK_HOSTS, HostGuard
from lmworks.serving.page import page_headers
from lmworks.serving.streaming import DONE, Event, EventStream
from lmworks.studio.pages import PAGES, page_html
from lmworks.studio.shelf import ModelShelf, TokenizerShelf
from lmworks.studio.texts import Texts

MAX_BODY_BYTES = 16 << 20
_THREADS = 2
T = TypeVar("T")


class Loading(NamedTuple):
    """What was said on the way (a line, or a part of the result), or the result."""

    line: Any = ""
    result: Any = None


class Gone(Exception):
    """The page that asked does not wait any more."""


class Studio:
    """What the pages share: texts, tokenizers, models, and the threads that work."""

    def __init__(self, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self.texts = Texts()
        self.tokenizers = TokenizerShelf()
        self.models = ModelShelf()
        self._workers = ThreadPoolExecutor(_THREADS, thread_name_prefix="studio")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="studio-load")

    async def work(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a function that takes its time, run beside the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, function, *arguments)

    async def load(self, function: Callable[[Callable[[Any], None]], T]) -> AsyncIterator[Loading]:
        """What `function` says while it works, and then its result.

        When nobody waits any more, the next thing that it says raises `Gone` in it.
        """
        loop, lines = asyncio.get_running_loop(), asyncio.Queue[Any]()
        is_gone = threading.Event()

        def say(line: Any) -> None:
            if is_gone.is_set():
                raise Gone
            loop.call_soon_threadsafe(lines.put_nowait, line)

        done = loop.run_in_executor(self._loader, function, say)
        done.add_done_callback(lambda _: lines.put_nowait(None))
        try:
            while (line := await lines.get()) is not None:
                yield Loading(line=line)
            yield Loading(result=done.result())
        finally:
            is_gone.set()


def create_app(
    *,
    allowed_hosts: Collection[str] | None = LOOPBACK_HOSTS,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """The Studio as an ASGI application; `app.state.studio` holds what its pages share.

    Args:
        allowed_hosts: names that requests may address it by; None: any. See `serving.guard`.
    """
    app = FastAPI(title="lmworks studio", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.studio = studio = Studio(max_body_bytes)
    install_error_handlers(app)
    if allowed_hosts is not None:
        app.add_middleware(HostGuard, hosts=allowed_hosts)
    _add_text_routes(app, studio)
    _add_page(app, "home", "/")
    for name, (target, _, _) in PAGES.items():
        _add_page(app, name, f"/{name}")
        load_target(target)(app, studio)
    return app


def _add_page(app: FastAPI, name: str, path: str) -> None:
    @app.get(path)
    async def page() -> HTMLResponse:
        html = page_html(name)
        return HTMLResponse(html, headers=page_headers(html))


def _add_text_routes(app: FastAPI, studio: Studio) -> None:
    @app.post("/api/texts")
    async def add(http: Request) -> Response:
        try:
            data = await read_body(http, studio.max_body_bytes)
        except ApiError as error:
            if error.status != 413:
                raise
            limit = studio.max_body_bytes / (1 << 20)
            message = f"this text is over the limit of {limit:g} MB: take a part of it"
            raise ApiError(413, message, code="body_too_large") from None
        return JSONResponse((await studio.work(studio.texts.add, data)).about())

    @app.get("/api/texts/{text_id}")
    async def about(text_id: str) -> Response:
        return JSONResponse(studio.texts.get(text_id).about())


def stream(events: AsyncIterator[dict[str, Any]]) -> EventStream:
    """Server-sent events; an error is the last one, and a client that leaves ends the work."""

    async def wrapped() -> AsyncGenerator[Event, None]:
        async for event in events:
            yield Event(event)
        yield DONE

    return EventStream(wrapped(), on_end=lambda: None)
