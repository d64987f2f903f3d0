"""What the server counts, and `/metrics` in the text format of Prometheus.

Labels have few values: known models, known endpoints, statuses.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any

from lmworks.inference.base import Delta
from lmworks.inference.statistics import (
    ITL_BUCKETS_S,
    LATENCY_BUCKETS_S,
    TTFT_BUCKETS_S,
    EngineStatistics,
    Histogram,
)
from lmworks.serving.catalogue import Models
from lmworks.serving.prometheus import head, histogram_samples, sample

RATE_WINDOW_S = 10


class ModelMetrics:
    """One model's figures, as the server sees them."""

    def __init__(self) -> None:
        self.ttft_s, self.itl_s = Histogram(TTFT_BUCKETS_S), Histogram(ITL_BUCKETS_S)
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = 0
        self.in_flight = 0
        self.answers: Counter[str] = Counter()
        self._recent: deque[tuple[int, int]] = deque(maxlen=RATE_WINDOW_S + 1)

    def count_piece(self, now_s: float) -> None:
        """A piece came: a token, of a model of this machine."""
        second = int(now_s)
        if self._recent and self._recent[-1][0] == second:
            self._recent[-1] = (second, self._recent[-1][1] + 1)
        else:
            self._recent.append((second, 1))

    def tokens_per_s(self) -> float:
        """Pieces per second, over the last whole seconds."""
        now = int(time.monotonic())
        counts = [n for second, n in self._recent if now - RATE_WINDOW_S <= second < now]
        return sum(counts) / RATE_WINDOW_S


class RequestWatch:
    """One request's figures; see `turns.Watch`. Used on the event loop only."""

    def __init__(self, metrics: ModelMetrics) -> None:
        self._metrics = metrics
        self._started_s = time.monotonic()
        self._last_s: dict[int, float] = {}
        self._reasons: list[str] = []
        metrics.in_flight += 1

    def saw(self, index: int, delta: Delta) -> None:
        """See `turns.Watch`."""
        now_s, metrics = time.monotonic(), self._metrics
        if not self._last_s:
            metrics.ttft_s.observe(now_s - self._started_s)
        if index in self._last_s:
            metrics.itl_s.observe(now_s - self._last_s[index])
        self._last_s[index] = now_s
        metrics.count_piece(now_s)
        if delta.usage:
            metrics.prompt_tokens += delta.usage.prompt_tokens
            metrics.completion_tokens += delta.usage.completion_tokens
            metrics.cached_tokens += delta.usage.cached_tokens
        if delta.finish_reason:
            self._reasons.append(delta.finish_reason)

    def end(self, error: BaseException | None) -> None:
        """See `turns.Watch`."""
        self._metrics.in_flight -= 1
        ended = ["error"] if error is not None else self._reasons or ["cancelled"]
        self._metrics.answers.update(ended)


class Metrics:
    """All figures of a server."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._by_model = {name: ModelMetrics() for name in models.names()}
        self._requests: Counter[tuple[str, int]] = Counter()
        self._latency_s: dict[str, Histogram] = {}
        self._lock = threading.Lock()

    def of(self, model: str) -> ModelMetrics:
        """A known model's figures."""
        return self._by_model.setdefault(model, ModelMetrics())

    def count_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answered (or abandoned) HTTP request; `endpoint` is a route, not a path."""
        with self._lock:
            self._requests[endpoint, status] += 1
            latency_s = self._latency_s.setdefault(endpoint, Histogram(LATENCY_BUCKETS_S))
        latency_s.observe(seconds)

    def engines(self) -> dict[str, Any]:
        """The engines in memory, each by the name of the first model that it serves."""
        found: dict[int, tuple[str, Any]] = {}
        for name, model in self._models.loaded().items():
            if (engine := getattr(model, "engine", None)) is not None:
                found.setdefault(id(engine), (name, engine))
        return dict(found.values())

    def render(self) -> str:
        """The page at `/metrics`."""
        parts = (
            self._server_lines(),
            self._memory_lines(),
            self._model_lines(),
            self._engine_lines(),
        )
        return "\n".join([*(line for part in parts for line in part), ""])

    def _server_lines(self) -> Iterator[str]:
        yield from head("lmworks_requests_total", "counter", "HTTP requests by status.")
        with self._lock:
            requests = sorted(self._requests.items())
            latencies = sorted(self._latency_s.items())
        for (endpoint, status), count in requests:
            yield sample("lmworks_requests_total", {"endpoint": endpoint, "status": status}, count)
        name = "lmworks_request_seconds"
        yield from head(name, "histogram", "Time to the end of the answer.")
        for endpoint, histogram in latencies:
            yield from histogram_samples(name, {"endpoint": endpoint}, histogram)

    def _memory_lines(self) -> Iterator[str]:
        """Of models that come and go: who is in memory, and how often each came."""
        described = [each for each in self._models.describe() if "state" in each]
        if not described:
            return
        yield from _family(
            "lmworks_model_bytes",
            "gauge",
            "Memory of a model that is loaded.",
            {
                each["id"]: (each["bytes"] or 0) if each["state"] == "ready" else 0
                for each in described
            },
        )
        yield from _family(
            "lmworks_model_loads_total",
            "counter",
            "How often a model was loaded.",
            {each["id"]: each["num_loads"] for each in described},
        )

    def _model_lines(self) -> Iterator[str]:
        metrics = dict(self._by_model)
        yield from _family(
            "lmworks_prompt_tokens_total",
            "counter",
            "Tokens read, of finished requests.",
            {model: m.prompt_tokens for model, m in metrics.items()},
        )
        yield from _family(
            "lmworks_completion_tokens_total",
            "counter",
            "Tokens produced, of finished requests.",
            {model: m.completion_tokens for model, m in metrics.items()},
        )
        yield from _family(
            "lmworks_cached_prompt_tokens_total",
            "counter",
            "Tokens of prompts that were found in the cache, of finished requests.",
            {model: m.cached_tokens for model, m in metrics.items()},
        )
        yield from _family(
            "lmworks_requests_in_flight",
            "gauge",
            "Requests being answered or waiting.",
            {model: m.in_flight for model, m in metrics.items()},
        )
        yield from _family(
            "lmworks_tokens_per_second",
            "gauge",
            f"Tokens sent per second, over the last {RATE_WINDOW_S} seconds.",
            {model: m.tokens_per_s() for model, m in metrics.items()},
        )
        name = "lmworks_answers_total"
        yield from head(name, "counter", "Answers by how they ended.")
        for model, m in metrics.items():
            for how, count in sorted(m.answers.items()):
                yield sample(name, {"model": model, "end": how}, count)
        for name, text, histograms in (
            (
                "lmworks_time_to_first_token_seconds",
                "Time from the request to the first piece.",
                {model: m.ttft_s for model, m in metrics.items()},
            ),
            (
                "lmworks_inter_token_seconds",
                "Time between two pieces of an answer.",
                {model: m.itl_s for model, m in metrics.items()},
            ),
        ):
            yield from _histograms(name, text, histograms)

    def _engine_lines(self) -> Iterator[str]:
        engines = self.engines()
        yield from _family(
            "lmworks_requests_running",
            "gauge",
            "Requests that hold a slot of the engine.",
            {name: engine.num_running for name, engine in engines.items()},
        )
        yield from _family(
            "lmworks_requests_waiting",
            "gauge",
            "Requests in the engine's queue.",
            {name: engine.num_waiting for name, engine in engines.items()},
        )
        statistics: dict[str, EngineStatistics] = {n: e.statistics for n, e in engines.items()}
        for name, kind, text, field in _OF_ENGINES:
            values = {model: getattr(s, field) for model, s in statistics.items()}
            yield from _family(name, kind, text, values)
        for name, text, field in _HISTOGRAMS_OF_ENGINES:
            histograms = {model: getattr(s, field) for model, s in statistics.items()}
            yield from _histograms(name, text, histograms)


# Fields of `EngineStatistics`, as they are told.
_OF_ENGINES = (
    (
        "lmworks_generated_tokens_total",
        "counter",
        "Tokens sampled, those of cancelled requests included.",
        "completion_tokens",
    ),
    (
        "lmworks_prefix_hit_tokens_total",
        "counter",
        "Prompt tokens in cache.",
        "cached_prompt_tokens",
    ),
    (
        "lmworks_read_prompt_tokens_total",
        "counter",
        "Prompt tokens, cached or not.",
        "prompt_tokens",
    ),
    (
        "lmworks_recomputed_tokens_total",
        "counter",
        "Read again after preemption.",
        "recomputed_tokens",
    ),
    ("lmworks_preemptions_total", "counter", "Requests that had to make room.", "preemptions"),
    ("lmworks_proposed_tokens_total", "counter", "Of speculation: guessed.", "proposed_tokens"),
    ("lmworks_accepted_tokens_total", "counter", "Of speculation: right.", "accepted_tokens"),
    ("lmworks_cache_pages", "gauge", "Pages of the key-value cache.", "num_pages"),
    ("lmworks_cache_pages_in_use", "gauge", "Pages in use.", "pages_in_use"),
    ("lmworks_cache_pages_of_prefixes", "gauge", "Of these, kept beginnings.", "prefix_pages"),
)
_HISTOGRAMS_OF_ENGINES = (
    ("lmworks_batch_size", "Requests of a decode step.", "batch_size"),
    ("lmworks_queue_seconds", "From the request to its slot.", "queue_wait_s"),
    ("lmworks_engine_ttft_seconds", "From the request to its first token.", "ttft_s"),
    ("lmworks_engine_itl_seconds", "Time between two tokens of a request.", "itl_s"),
)


def _family(name: str, kind: str, help_text: str, values: Mapping[str, float]) -> Iterator[str]:
    yield from head(name, kind, help_text)
    for model, value in values.items():
        yield sample(name, {"model": model}, value)


def _histograms(name: str, text: str, by_model: Mapping[str, Histogram]) -> Iterator[str]:
    yield from head(name, "histogram", text)
    for model, histogram in by_model.items():
        yield from histogram_samples(name, {"model": model}, histogram)
