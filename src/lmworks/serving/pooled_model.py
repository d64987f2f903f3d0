"""A model of the pool as a `ChatModel`: what is behind it is loaded, used, and let go per request.

What a spec says of a model (system prompt, sampling) is put in where a request says nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.inference.base import ChatModel, Completion, Delta, Messages, collect
from lmworks.serving.loaded_models import LoadedModel
from lmworks.serving.memory_units import Lease

if TYPE_CHECKING:
    from lmworks.inference.embedding import Embedder
    from lmworks.inference.reranking import CosineReranker, CrossEncoder
    from lmworks.serving.model_pool import Entry, ModelPool


class PooledModel:
    """See the module. Every method raises DoesNotFit, NoRoom or LoadFailed where the model can't be
    had, and UserError for what it can't do."""

    # Taken here whatever the model is, which may not be loaded yet; what it can't use is left out.
    request_options = ("client", "priority")

    def __init__(self, pool: ModelPool, entry: Entry) -> None:
        self._pool, self._entry = pool, entry
        self.name = entry.name

    # No `engine`: it may be unloaded once a lease has ended. What outlives one is here.

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, the model loaded if need be; None for a model that is elsewhere."""
        with self._pool.acquire(self.name) as lease:
            engine = getattr(_loaded(lease).chat, "engine", None)
            return getattr(engine, "tokenizer", None)

    @property
    def max_positions(self) -> int:
        """Prompt and answer together, in tokens, the model loaded if need be; 0: unknown."""
        with self._pool.acquire(self.name) as lease:
            return _loaded(lease).context

    def complete(self, messages: Messages, **settings: Any) -> Completion:
        """See `ChatModel.complete`."""
        return collect(self.stream(messages, **settings), logprobs=_wants_logprobs(settings))

    def stream(self, messages: Messages, **settings: Any) -> PooledStream:
        """See `ChatModel.stream`."""
        whole = self._with_system(messages)
        return self._open(lambda chat, merged: chat.stream(whole, **merged), settings)

    def complete_text(self, prompt: str | Sequence[int], **settings: Any) -> Completion:
        """See `ChatModel.complete_text`."""
        return collect(self.stream_text(prompt, **settings), logprobs=_wants_logprobs(settings))

    def stream_text(self, prompt: str | Sequence[int], **settings: Any) -> PooledStream:
        """See `ChatModel.stream_text`."""
        return self._open(lambda chat, merged: chat.stream_text(prompt, **merged), settings)

    def count_tokens(self, messages: Messages, **settings: Any) -> int:
        """The length of the prompt that a conversation becomes. Raises: UserError where only the
        other side could tell."""
        with self._pool.acquire(self.name) as lease:
            count = getattr(_loaded(lease).chat, "count_tokens", None)
            if count is None:
                raise UserError(f"the tokens of {self.name!r} can't be counted: it is not local")
            found: int = count(self._with_system(messages), **settings)
            return found

    @contextlib.contextmanager
    def embedder(self) -> Iterator[Embedder]:
        """What makes vectors, for as long as it lasts."""
        with self._pool.acquire(self.name) as lease:
            yield _loaded(lease).embedder(self._entry.key)

    @contextlib.contextmanager
    def reranker(self) -> Iterator[CrossEncoder | CosineReranker]:
        """What scores texts, for as long as it lasts."""
        with self._pool.acquire(self.name) as lease:
            yield _loaded(lease).reranker(self._entry.key)

    def _with_system(self, messages: Messages) -> Messages:
        system = self._entry.settings.system
        if not system or any(message.get("role") == "system" for message in messages):
            return messages
        return [{"role": "system", "content": system}, *messages]

    def _open(
        self, opened: Callable[[ChatModel, dict[str, Any]], Iterator[Delta]], settings: Any
    ) -> PooledStream:
        lease = self._pool.acquire(self.name)
        try:
            chat = _loaded(lease).chat
            known = getattr(chat, "request_options", ())
            merged = {**self._entry.settings.sampling, **settings}
            for name in self.request_options:
                if name not in known:
                    merged.pop(name, None)
            if self._entry.key:
                merged["adapter"] = self._entry.key
            stream = opened(chat, merged)
        except BaseException:
            lease.release()
            raise
        return PooledStream(stream, lease, self._entry.saw)


class PooledStream(Iterator[Delta]):
    """The deltas of a request; its model stays until it has ended, was cancelled or dropped."""

    def __init__(
        self, stream: Iterator[Delta], lease: Lease, saw: Callable[[int, float], None]
    ) -> None:
        self._stream: Iterator[Delta] | None = stream
        self._lease, self._saw = lease, saw
        self._first_s: float | None = None
        if hasattr(stream, "on_ready"):  # each of its pieces is one of ours
            self.on_ready = stream.on_ready

    def ready(self) -> bool:
        """See `Stream.ready`; there where the stream beneath has `on_ready`."""
        stream: Any = self._stream
        return stream is None or stream.ready()

    def __iter__(self) -> PooledStream:
        return self

    def __next__(self) -> Delta:
        stream = self._stream
        if stream is None:
            raise StopIteration
        try:
            delta = next(stream)
        except BaseException:
            self.close()
            raise
        if self._first_s is None:
            self._first_s = time.monotonic()
        if delta.usage is not None:
            self._saw(delta.usage.completion_tokens, time.monotonic() - self._first_s)
        if delta.finish_reason is not None and delta.usage is not None:
            self.close()  # who reads the last sees an idle model
        return delta

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt, where it is known before the end; else 0."""
        return int(getattr(self._stream, "prompt_tokens", 0))

    def cancel(self) -> None:
        """End the generation, from any thread."""
        if cancel := getattr(self._stream, "cancel", None):
            cancel()
        self.close()

    def close(self) -> None:
        """Let the model go; what is not read yet is dropped."""
        stream, self._stream = self._stream, None
        if close := getattr(stream, "close", None):
            # A generator that runs in another thread can't be closed from here; it ends there.
            with contextlib.suppress(ValueError):
                close()
        self._lease.release()

    def __del__(self) -> None:
        self.close()


def _loaded(lease: Lease) -> LoadedModel:
    """The model under a lease: of an adapter its base."""
    found: LoadedModel = lease.value if lease.parent is None else lease.parent
    return found


def _wants_logprobs(settings: dict[str, Any]) -> bool:
    return settings.get("logprobs") is not None
