"""What the server counts, and `/metrics` in the text format of Prometheus.

Written by hand: a dozen lines of a stable format, so serving needs no further package. Labels have
few values: known models, known endpoints, statuses.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lmworks.inference.base import Delta
from lmworks.inference.statistics import (
    LATENCY_BUCKETS_S,
    TTFT_BUCKETS_S,
    EngineStatistics,
    Histogram,
)
from lmworks.serving.catalogue import Models

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ModelMetrics:
    """One model's figures, as the server sees them."""

    def __init__(self) -> None:
        self.ttft_s = Histogram(TTFT_BUCKETS_S)
        self.prompt_tokens = self.completion_tokens = 0
        self.in_flight = 0


class RequestWatch:
    """One request's figures; fed with its deltas, ended once. Used on the event loop only."""

    def __init__(self, metrics: ModelMetrics) -> None:
        self._metrics = metrics
        self._started_s = time.monotonic()
        self._first = True
        metrics.in_flight += 1

    def saw(self, index: int, delta: Delta) -> None:
        """Count a piece."""
        if self._first:
            self._first = False
            self._metrics.ttft_s.observe(time.monotonic() - self._started_s)
        if delta.usage:
            self._metrics.prompt_tokens += delta.usage.prompt_tokens
            self._metrics.completion_tokens += delta.usage.completion_tokens

    def end(self, error: BaseException | None) -> None:
        """The request is over."""
        self._metrics.in_flight -= 1


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
        """The engines in memory, by the name of their model."""
        return {
            name: engine
            for name, model in self._models.loaded().items()
            if (engine := getattr(model, "engine", None)) is not None
        }

    def render(self) -> str:
        """The page at `/metrics`."""
        return "\n".join([*self._server_lines(), *self._model_lines(), *self._engine_lines(), ""])

    def _server_lines(self) -> Iterator[str]:
        yield from _head("lmworks_requests_total", "counter", "HTTP requests by status.")
        with self._lock:
            requests = sorted(self._requests.items())
            latencies = sorted(self._latency_s.items())
        for (endpoint, status), count in requests:
            yield _line("lmworks_requests_total", {"endpoint": endpoint, "status": status}, count)
        name = "lmworks_request_seconds"
        yield from _head(name, "histogram", "Time to the end of the answer.")
        for endpoint, histogram in latencies:
            yield from _histogram_lines(name, {"endpoint": endpoint}, histogram)

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
            "lmworks_requests_in_flight",
            "gauge",
            "Requests being answered or waiting.",
            {model: m.in_flight for model, m in metrics.items()},
        )
        name = "lmworks_time_to_first_token_seconds"
        yield from _head(name, "histogram", "Time from the request to the first piece.")
        for model, m in metrics.items():
            yield from _histogram_lines(name, {"model": model}, m.ttft_s)

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
        yield from _family(
            "lmworks_generated_tokens_total",
            "counter",
            "Tokens sampled, those of cancelled requests included.",
            {name: s.completion_tokens for name, s in statistics.items()},
        )
        name = "lmworks_inter_token_seconds"
        yield from _head(name, "histogram", "Time between two tokens of a request.")
        for model, s in statistics.items():
            yield from _histogram_lines(name, {"model": model}, s.itl_s)


def _head(name: str, kind: str, help_text: str) -> Iterable[str]:
    return (f"# HELP {name} {help_text}", f"# TYPE {name} {kind}")


def _family(name: str, kind: str, help_text: str, values: Mapping[str, float]) -> Iterator[str]:
    yield from _head(name, kind, help_text)
    for model, value in values.items():
        yield _line(name, {"model": model}, value)


def _histogram_lines(name: str, labels: dict[str, Any], histogram: Histogram) -> Iterator[str]:
    counts, total = histogram.snapshot()
    for bound, count in zip([*map(repr, histogram.buckets), "+Inf"], counts, strict=True):
        yield _line(name + "_bucket", labels | {"le": bound}, count)
    yield _line(name + "_sum", labels, total)
    yield _line(name + "_count", labels, counts[-1])


def _line(name: str, labels: Mapping[str, Any], value: float) -> str:
    inside = ",".join(f'{key}="{_escape(str(text))}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
