"""Which model makes vectors or scores texts, and running it beside the event loop.

A pool lends its models; a chat model that stands there by itself makes vectors of its last states.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from lmworks.inference.embedding import Embedder
from lmworks.inference.reranking import CosineReranker, CrossEncoder
from lmworks.serving.errors import CLIENT_LEFT, ApiError
from lmworks.serving.generation import in_thread
from lmworks.serving.metrics import ModelMetrics
from lmworks.serving.service import Service
from lmworks.serving.streaming import unless_left

if TYPE_CHECKING:
    from lmworks.inference.row_batches import RowRequest

T = TypeVar("T")
_MADE: weakref.WeakKeyDictionary[Any, Embedder] = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


def lent_embedder(model: Any) -> AbstractContextManager[Embedder]:
    """What makes vectors of texts. Raises: ApiError (400) where nothing does."""
    if isinstance(model, Embedder):
        return contextlib.nullcontext(model)
    if lend := getattr(model, "embedder", None):
        lent: AbstractContextManager[Embedder] = lend()
        return lent
    engine = getattr(model, "engine", None)
    if engine is None:
        raise ApiError(400, "this model makes no vectors here", param="model", code="wrong_model")
    with _MAKING:
        if engine not in _MADE:
            _MADE[engine] = Embedder(engine.model, engine.tokenizer, model.name)
        return contextlib.nullcontext(_MADE[engine])


@contextlib.contextmanager
def lent_reranker(model: Any) -> Iterator[CrossEncoder | CosineReranker]:
    """What scores texts by a query. Raises: ApiError (400) where nothing does."""
    if isinstance(model, CrossEncoder | CosineReranker):
        yield model
    elif lend := getattr(model, "reranker", None):
        with lend() as reranker:
            yield reranker
    else:
        with lent_embedder(model) as embedder:
            yield CosineReranker(embedder)


class Work:
    """One request's work in a thread of its own; rows that it has queued can be dropped."""

    def __init__(self) -> None:
        self._queued: RowRequest | None = None
        self._cancelled = False

    def wait(self, request: RowRequest) -> list[Any]:
        """The results of queued rows. Raises: as `RowRequest.wait`."""
        self._queued = request
        if self._cancelled:
            request.cancel()
        return request.wait()

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._cancelled = True
        if self._queued is not None:
            self._queued.cancel()


async def encoded(
    http: Request,
    service: Service,
    name: str,
    work: Callable[[Any, Work], T],
    answer: Callable[[T], dict[str, Any]],
) -> Response:
    """What `answer` makes of `work(model, Work())`, counted; nothing once the client has left."""
    service.check_open()
    model = await service.model(name)
    metrics: ModelMetrics = service.metrics.of(name)
    state = Work()
    metrics.in_flight += 1
    try:
        found = await unless_left(http, in_thread(lambda: work(model, state)))
    finally:
        state.cancel()
        metrics.in_flight -= 1
    if found is None:
        return Response(status_code=CLIENT_LEFT)
    body = answer(found)
    metrics.prompt_tokens += body["usage"]["prompt_tokens"]
    return JSONResponse(body)
