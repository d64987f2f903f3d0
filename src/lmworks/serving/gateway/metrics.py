"""What a gateway counts, for `/metrics`. Labels are models, back ends and outcomes, never keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lmworks.inference.statistics import LATENCY_BUCKETS_S, TTFT_BUCKETS_S, Histogram
from lmworks.serving.prometheus import head, histogram_samples, sample

if TYPE_CHECKING:
    from lmworks.serving.gateway.backends import Backend

_STATES = {"closed": 0, "half-open": 1, "open": 2}
_PREFIX = "lmworks_gateway_"


class GatewayMetrics:
    """Used on the event loop only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # (model, status)
        self.refused: Counter[str] = Counter()  # by code
        self.tokens: Counter[tuple[str, str]] = Counter()  # (model, kind)
        self.retries = 0
        self.cache: Counter[str] = Counter()
        self.seconds = Histogram(LATENCY_BUCKETS_S)
        self.ttft_s = Histogram(TTFT_BUCKETS_S)
        self.overhead_s = Histogram((0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1))
        self.in_flight = 0

    def render(self, backends: Mapping[str, Backend]) -> str:
        """The page, in Prometheus' text format."""
        lines = [
            *_counter("requests_total", "Requests by status.", ("model", "status"), self.requests),
            *_counter(
                "refused_total",
                "Requests that were let in by nobody.",
                ("code",),
                {(code,): count for code, count in self.refused.items()},
            ),
            *_counter("tokens_total", "Tokens by kind.", ("model", "kind"), self.tokens),
            *_counter("retries_total", "Attempts after the first.", (), {(): self.retries}),
            *_counter(
                "cache_total",
                "Requests that a cache could answer, by what came of it.",
                ("result",),
                {(result,): count for result, count in self.cache.items()},
            ),
            *_gauge("requests_in_flight", "Requests being answered.", (), {(): self.in_flight}),
            *_histogram("request_seconds", "Time to the end of the answer.", self.seconds),
            *_histogram("time_to_first_byte_seconds", "Time to the first byte.", self.ttft_s),
            *_histogram("overhead_seconds", "Time before a request was sent on.", self.overhead_s),
            *self._backend_lines(backends),
            "",
        ]
        return "\n".join(lines)

    def _backend_lines(self, backends: Mapping[str, Backend]) -> Iterator[str]:
        of = {(name,): backend for name, backend in backends.items()}
        label = ("backend",)
        yield from _gauge(
            "backend_up",
            "1 if requests may go there.",
            label,
            {n: int(b.available) for n, b in of.items()},
        )
        yield from _gauge(
            "backend_breaker",
            "0 closed, 1 half open, 2 open.",
            label,
            {n: _STATES[b.state] for n, b in of.items()},
        )
        yield from _gauge(
            "backend_in_flight", "Requests there.", label, {n: b.in_flight for n, b in of.items()}
        )
        yield from _counter(
            "backend_requests_total", "Attempts.", label, {n: b.requests for n, b in of.items()}
        )
        failures = {
            (name, kind): count
            for name, backend in backends.items()
            for kind, count in backend.failures.items()
        }
        yield from _counter(
            "backend_failures_total", "Attempts that failed.", ("backend", "kind"), failures
        )


def _counter(
    name: str, about: str, labels: tuple[str, ...], values: Mapping[Any, float]
) -> Iterator[str]:
    yield from _family(name, "counter", about, labels, values)


def _gauge(
    name: str, about: str, labels: tuple[str, ...], values: Mapping[Any, float]
) -> Iterator[str]:
    yield from _family(name, "gauge", about, labels, values)


def _family(
    name: str, kind: str, about: str, labels: tuple[str, ...], values: Mapping[Any, float]
) -> Iterator[str]:
    yield from head(_PREFIX + name, kind, about)
    for key, value in sorted(values.items()):
        yield sample(_PREFIX + name, dict(zip(labels, key, strict=True)), value)


def _histogram(name: str, about: str, histogram: Histogram) -> Iterator[str]:
    yield from head(_PREFIX + name, "histogram", about)
    yield from histogram_samples(_PREFIX + name, {}, histogram)
