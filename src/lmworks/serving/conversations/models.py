"""What the page's model picker shows of each model: context, memory and measured speed."""

from __future__ import annotations

from typing import Any

from lmworks.serving.conversations.values import ChatSettings
from lmworks.serving.service import Service


def chat_model_names(service: Service) -> list[str]:
    """The models that one can talk to; what makes vectors or scores is not among them."""
    return [
        str(told["id"])
        for told in service.models.describe()
        if told.get("kind") in (None, "chat", "remote")
    ]


def model_name(service: Service, settings: ChatSettings) -> str:
    """The model of a conversation; the first that one can talk to, if it names none."""
    return settings.model or next(iter(chat_model_names(service)), "")


def described(service: Service) -> list[dict[str, Any]]:
    """One entry per name, in the server's order.

    `memory_bytes` is that of weights and cache together. `tokens_per_s` is what one answer gets,
    over the answers since the start; None before the first.
    """
    loaded, names = service.models.loaded(), chat_model_names(service)
    entries = []
    for told in service.models.describe():
        name = str(told["id"])
        if name not in names:
            continue
        engine: Any = getattr(loaded.get(name), "engine", None)
        entries.append(
            {
                "id": name,
                "loaded": told.get("state", "ready") == "ready",
                "context_tokens": getattr(engine, "max_positions", None) or told.get("context"),
                "memory_bytes": told.get("bytes") or _memory_bytes(engine),
                "tokens_per_s": told.get("tokens_per_s") or _tokens_per_s(engine),
                "remote": told.get("kind") == "remote" or hasattr(loaded.get(name), "url"),
            }
        )
    return entries


def _memory_bytes(engine: Any) -> int | None:
    if engine is None:
        return None
    model = engine.model
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors) + int(engine.cache_bytes)


def _tokens_per_s(engine: Any) -> float | None:
    if engine is None:
        return None
    counts, seconds = engine.statistics.itl_s.snapshot()
    return round(counts[-1] / seconds, 1) if counts[-1] and seconds > 0 else None
