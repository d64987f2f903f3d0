"""What the page's model picker shows of each model: context, memory and measured speed."""

from __future__ import annotations

from typing import Any

from lmworks.serving.service import Service


def described(service: Service) -> list[dict[str, Any]]:
    """One entry per name, in the server's order.

    `memory_bytes` is that of weights and cache together, for a model in memory. `tokens_per_s` is
    what one answer gets, over the answers since the start; None before the first.
    """
    loaded = service.models.loaded()
    entries = []
    for told in service.models.describe():
        name = str(told["id"])
        engine: Any = getattr(loaded.get(name), "engine", None)
        entries.append(
            {
                "id": name,
                "loaded": name in loaded,
                "context_tokens": getattr(engine, "max_positions", None),
                "memory_bytes": _memory_bytes(engine) or told.get("memory_bytes"),
                "tokens_per_s": _tokens_per_s(engine),
                "remote": name in loaded and hasattr(loaded[name], "url"),
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
