"""Which model makes vectors or scores texts, and running it beside the event loop.

A pool lends its models; a chat model that stands there by itself makes vectors of its last states.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request

from lmworks.inference.embedding import Embedder
from lmworks.inference.reranking import CosineReranker, CrossEncoder
from lmworks.serving.errors import ApiError
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


async def in_thread(work: Callable[[], T]) -> T:
    """The result of `work`, in a thread of its own: it may wait long for a model, and a pool of
    threads that others need too would be full of waiting ones."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(set_it: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_it(value)

    def run() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who waits
            try:
                result = work()
            except Exception as error:
                loop.call_soon_threadsafe(tell, future.set_exception, error)
            else:
                loop.call_soon_threadsafe(tell, future.set_result, result)

    threading.Thread(target=run, name="lmworks-encode", daemon=True).start()
    return await future


async def encoded(
    http: Request, service: Service, name: str, work: Callable[[Any, Work], T]
) -> T | None:
    """What `work(model, Work())` gives, or None once the client has left."""
    service.check_open()
    model = await service.model(name)
    metrics: ModelMetrics = service.metrics.of(name)
    state = Work()
    metrics.in_flight += 1
    try:
        return await unless_left(http, in_thread(lambda: work(model, state)))
    finally:
        state.cancel()
        metrics.in_flight -= 1
