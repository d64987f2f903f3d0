"""An answer, from the branch it stands on to what is remembered after it; page and terminal alike.

The order is: `turns_of` a branch, `plan_answer` (what the model is sent), `write_answer` (the model
speaks, the store is written as it does), `remember` (notes on what will fall out of the window).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmworks.core.errors import UserError
from lmworks.inference.base import ChatModel, Delta
from lmworks.inference.memory import LeftOut, MemoryPlan, Recaller, Turn, plan_prompt
from lmworks.inference.memory_recall import RecallByMeaning, RecallByWords, SentenceEncoder
from lmworks.inference.memory_summary import SUMMARY_TOKENS, summarise, summary_due
from lmworks.inference.token_counts import TokenCounter
from lmworks.serving.conversations.store import ConversationStore
from lmworks.serving.conversations.values import ChatSettings, Message

SAVE_EVERY_S = 0.5


def turns_of(store: ConversationStore, path: Sequence[Message]) -> list[Turn]:
    """The branch as turns. A question whose answer failed before its first word is not among them,
    since it may be what made it fail."""
    silent = {message.id for message in path[:-1] if _is_silent(message)}
    silent |= {message.parent_id for message in path[:-1] if _is_silent(message)}  # type: ignore[misc]
    return [
        Turn(
            id=message.id,
            number=number,
            role=message.role,
            content=message.content,
            attachments=tuple(
                (found.name, found.text)
                for found in map(store.attachments.get, message.attachment_ids)
            ),
        )
        for number, message in enumerate(path, 1)
        if message.id not in silent
    ]


def _is_silent(message: Message) -> bool:
    return message.role == "assistant" and not message.content.strip()


def plan_answer(
    store: ConversationStore,
    path: Sequence[Message],
    model: ChatModel,
    settings: ChatSettings,
    encoder: SentenceEncoder | None = None,
) -> MemoryPlan:
    """What the model is sent for the question that `path` ends with.

    Raises: DoesNotFit; UserError where recall by meaning is asked for and there is no encoder.
    """
    turns = turns_of(store, path)
    plan = plan_prompt(
        turns,
        TokenCounter(model),
        settings.memory,
        system=settings.system,
        answer_tokens=settings.max_tokens,
        summary=store.memories.summary([turn.id for turn in turns]),
        recaller=_recaller(store, path, settings, encoder),
    )
    told = {turn.id for turn in turns}
    skipped = [
        LeftOut(
            turn_id=message.id, number=number, role=message.role, tokens=0, why="was not answered"
        )
        for number, message in enumerate(path, 1)
        if message.id not in told and message.role == "user"
    ]
    plan.left_out.extend(skipped)
    return plan


def _recaller(
    store: ConversationStore,
    path: Sequence[Message],
    settings: ChatSettings,
    encoder: SentenceEncoder | None,
) -> Recaller | None:
    if settings.memory.recall == "off" or not path:
        return None
    if settings.memory.recall == "words":
        return RecallByWords()
    if encoder is None:
        raise UserError(
            "recall by meaning needs an encoder: start with --encoder minilm-l6, or recall by words"
        )
    return RecallByMeaning(encoder, store.memories.vectors(path[0].conversation_id))


def write_answer(
    store: ConversationStore,
    message_id: str,
    model: ChatModel,
    plan: MemoryPlan,
    settings: ChatSettings,
    opened: Callable[[Any], None] = lambda stream: None,
) -> Iterator[Delta]:
    """The model's answer, piece by piece, each soon on the disk.

    However it ends, the store says how: whole, stopped (the stream was cancelled, this iterator
    closed or Ctrl-C pressed) or failed.

    Args:
        opened: is given the stream, for its `cancel`.
    Raises: as `ChatModel.stream`.
    """
    watch, state, pieces = _Watch(plan), "stopped", list[str]()
    saved_s = time.monotonic()
    try:
        stream = model.stream(plan.messages, **settings.sampling())
        opened(stream)
        for delta in stream:
            pieces.append(delta.text)
            watch.saw(delta)
            if time.monotonic() - saved_s > SAVE_EVERY_S:
                store.save(message_id, "".join(pieces), "writing", watch.info)
                saved_s = time.monotonic()
            if delta.finish_reason:
                state = "whole"
            yield delta
    except Exception as error:
        state = "failed"
        watch.info["error"] = failure_line(error)
        raise
    finally:
        watch.end()
        store.save(message_id, "".join(pieces), state, watch.info)  # type: ignore[arg-type]


def failure_line(error: Exception) -> str:
    """What a person is told of an error."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"


class _Watch:
    """The figures of one answer."""

    def __init__(self, plan: MemoryPlan) -> None:
        self._started_s = time.monotonic()
        self._first_s = self._last_s = 0.0
        self._pieces = 0
        self.info: dict[str, Any] = {
            "prompt_tokens": plan.prompt_tokens,
            "memory": plan.described(texts=False),
        }

    def saw(self, delta: Delta) -> None:
        self._last_s = time.monotonic()
        self._first_s = self._first_s or self._last_s
        self._pieces += 1
        self.info["completion_tokens"] = self._pieces
        if delta.finish_reason:
            self.info["finish_reason"] = delta.finish_reason
        if delta.usage:
            self.info["prompt_tokens"] = delta.usage.prompt_tokens
            self.info["completion_tokens"] = delta.usage.completion_tokens
        self.end()

    def end(self) -> None:
        if self._first_s:
            self.info["first_token_s"] = round(self._first_s - self._started_s, 3)
        tokens = self.info.get("completion_tokens", 0)
        if self._last_s > self._first_s and tokens > 1:
            rate = (tokens - 1) / (self._last_s - self._first_s)
            self.info["tokens_per_s"] = round(rate, 2)


def remember(
    store: ConversationStore, path: Sequence[Message], model: ChatModel, settings: ChatSettings
) -> bool:
    """Write notes on what will soon fall out of the window, if the settings say so; whether any
    were written. Takes as long as an answer. Raises: as `ChatModel.complete`."""
    if not settings.memory.summary:
        return False
    turns = turns_of(store, path)
    counter = TokenCounter(model)
    previous = store.memories.summary([turn.id for turn in turns])
    due = summary_due(
        turns,
        counter,
        settings.memory,
        system=settings.system,
        answer_tokens=settings.max_tokens,
        summary=previous,
    )
    if not due:
        return False
    limit = settings.memory.context_tokens or counter.context or SUMMARY_TOKENS * 4
    max_tokens = min(SUMMARY_TOKENS, limit // 4)
    summary = summarise(model, due, counter, previous, max_tokens=max_tokens)
    store.memories.keep_summary(summary, model.name)
    return True
