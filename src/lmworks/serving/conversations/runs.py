"""Answers that the server writes, whoever watches: a page may leave, come back and go on reading.

Each answer is written in a thread of its own (`answers.write_answer`) and handed to the event loop,
where pages follow it. Nothing here is needed to keep it: a run that dies leaves what the store has.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator
from typing import Any

from lmworks.inference.base import ChatModel, Delta
from lmworks.inference.memory_recall import LazyEncoder
from lmworks.serving.conversations.answers import (
    failure_line,
    plan_answer,
    remember,
    write_answer,
)
from lmworks.serving.conversations.store import ConversationStore
from lmworks.serving.conversations.values import ChatSettings, Message
from lmworks.serving.metrics import RequestWatch
from lmworks.serving.service import Service


class Run:
    """One answer under way. Its fields are touched on the event loop only, but for the two that
    say that it is to end."""

    def __init__(self, message: Message, watch: RequestWatch) -> None:
        self.message, self.watch = message, watch
        self.text, self.status = "", "waiting"
        self.followers: set[asyncio.Queue[dict[str, Any] | None]] = set()
        self.ending = threading.Event()
        self.stream: Any = None
        self.thread: threading.Thread | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Keep what happened, and tell it to those who follow."""
        event = event | {"at": len(self.text)}  # where in the answer its text begins
        self.text += event.get("text", "")
        self.status = event.get("status", self.status)
        for queue in self.followers:
            queue.put_nowait(event)

    def end(self) -> None:
        """Stop soon; from any thread."""
        self.ending.set()
        if cancel := getattr(self.stream, "cancel", None):
            cancel()


class Runs:
    """The answers that this server writes."""

    def __init__(self, service: Service, store: ConversationStore, encoder: str = "") -> None:
        self._service, self._store = service, store
        self.encoder = LazyEncoder(encoder) if encoder else None
        self._runs: dict[str, Run] = {}

    @property
    def conversation_ids(self) -> set[str]:
        """The conversations in which an answer is being written."""
        return {run.message.conversation_id for run in self._runs.values()}

    def start(self, message: Message, settings: ChatSettings) -> None:
        """Begin to write `message`, an empty answer. Call it on the loop."""
        run = Run(message, RequestWatch(self._service.metrics.of(message.model)))
        self._runs[message.id] = run
        loop = asyncio.get_running_loop()
        run.thread = threading.Thread(
            target=self._write, args=(run, loop, settings), name="lmworks-answer", daemon=True
        )
        run.thread.start()

    def stop(self, message_id: str) -> bool:
        """End an answer; False if it is not being written here."""
        run = self._runs.get(message_id)
        if run is not None:
            run.end()
        return run is not None

    @property
    def num_running(self) -> int:
        """How many are being written."""
        return len(self._runs)

    def cancel_all(self) -> None:
        """The server ends: end all, and wait a little until they are stored."""
        runs = list(self._runs.values())
        for run in runs:
            run.end()
        for run in runs:
            if run.thread is not None:
                run.thread.join(timeout=2)

    async def follow(self, message_id: str, after: int = 0) -> AsyncGenerator[dict[str, Any], None]:
        """What is written from the character `after` on, to the end; then the message as stored."""
        run = self._runs.get(message_id)
        if run is None:
            yield {"done": True}
            return
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        run.followers.add(queue)
        try:
            yield {"status": run.status, "text": run.text[after:], "at": after}
            while (event := await queue.get()) is not None:
                known = max(0, after - event["at"])  # a reader may be ahead, of a run begun anew
                yield event | ({"text": event["text"][known:]} if "text" in event else {})
            yield {"done": True}
        finally:
            run.followers.discard(queue)

    # --- from here on: the thread of one answer ---

    def _write(self, run: Run, loop: asyncio.AbstractEventLoop, settings: ChatSettings) -> None:
        def on_loop(function: Any, *values: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody follows
                loop.call_soon_threadsafe(function, *values)

        model: ChatModel | None = None
        failure: Exception | None = None
        try:
            on_loop(run.take, {"status": "loading"})
            model = self._service.models.get(run.message.model)
            for event in self._answer(run, model, settings, lambda d: on_loop(run.watch.saw, 0, d)):
                on_loop(run.take, event)
        except Exception as error:  # it is told on the page, whatever it is
            self._failed(run, error)
            model, failure = None, error
        finally:
            on_loop(self._ended, run, failure)
        if model is not None and not run.ending.is_set():
            self._remember(run, model, settings)

    def _answer(self, run: Run, model: ChatModel, settings: ChatSettings, saw: Any) -> Any:
        path = self._store.path(run.message.conversation_id, run.message.parent_id)
        plan = plan_answer(self._store, path, model, settings, self.encoder)
        yield {"status": "reading", "prompt_tokens": plan.prompt_tokens}

        def opened(stream: Any) -> None:
            run.stream = stream
            if run.ending.is_set():
                run.end()

        delta: Delta
        for delta in write_answer(self._store, run.message.id, model, plan, settings, opened):
            saw(delta)
            if delta.text:
                yield {"status": "writing", "text": delta.text}
            if run.ending.is_set():  # a stream without `cancel` is left here
                return

    def _failed(self, run: Run, error: Exception) -> None:
        with contextlib.suppress(Exception):
            now = self._store.message(run.message.id)
            if now.state == "writing":
                info = now.info | {"error": failure_line(error)}
                self._store.save(run.message.id, now.content, "failed", info)

    def _remember(self, run: Run, model: ChatModel, settings: ChatSettings) -> None:
        # What fails here costs notes that the next answer will try to have again.
        with contextlib.suppress(Exception):
            path = self._store.path(run.message.conversation_id, run.message.id)
            remember(self._store, path, model, settings)

    # --- on the loop again ---

    def _ended(self, run: Run, failure: Exception | None) -> None:
        self._runs.pop(run.message.id, None)
        run.watch.end(failure)
        for queue in run.followers:
            queue.put_nowait(None)
