"""Figures of a running engine: counters, gauges and histograms, as Prometheus defines them."""

from __future__ import annotations

import dataclasses
import threading
from bisect import bisect_left
from collections.abc import Sequence

# Seconds; from a cached token on a fast machine to a long prompt on a slow one.
TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
QUEUE_BUCKETS_S = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
LATENCY_BUCKETS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram:
    """Counts of observations per bucket; safe to use from several threads."""

    def __init__(self, buckets: Sequence[float]) -> None:
        self.buckets = tuple(buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count one value."""
        with self._lock:
            self._counts[bisect_left(self.buckets, value)] += 1
            self._sum += value

    def snapshot(self) -> tuple[list[int], float]:
        """Cumulative counts (one per bucket, then all), and the sum of the values."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        for index in range(1, len(counts)):
            counts[index] += counts[index - 1]
        return counts, total


@dataclasses.dataclass(kw_only=True)
class EngineStatistics:
    """What an engine has done since it was made, and how it stands. Only its thread writes.

    Attributes:
        cached_prompt_tokens: of `prompt_tokens`, those whose pages were there already.
        recomputed_tokens: read again by requests that had been preempted.
        preemptions: how often a request had to give up its slot for another.
        proposed_tokens, accepted_tokens: of speculation.
        batch_size: requests of each decode step.
        queue_wait_s: from `submit` to the first slot.
        queue_length, running: requests that wait, and that hold a slot.
        pages_in_use: of `num_pages`; `prefix_pages` of them are kept in the tree of prefixes.
    """

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    finished: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"stop": 0, "length": 0, "cancelled": 0, "error": 0}
    )
    ttft_s: Histogram = dataclasses.field(default_factory=lambda: Histogram(TTFT_BUCKETS_S))
    itl_s: Histogram = dataclasses.field(default_factory=lambda: Histogram(ITL_BUCKETS_S))
    queue_wait_s: Histogram = dataclasses.field(default_factory=lambda: Histogram(QUEUE_BUCKETS_S))
    batch_size: Histogram = dataclasses.field(default_factory=lambda: Histogram(BATCH_BUCKETS))
    queue_length: int = 0
    running: int = 0
    pages_in_use: int = 0
    prefix_pages: int = 0
    num_pages: int = 0
