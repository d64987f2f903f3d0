"""A back end as the gateway sees it: how busy, how fast, and whether to leave it alone.

A circuit breaker opens after some failures in a row: requests go elsewhere at once instead of
waiting for a dead one. After a while it is half open: one request may try, and its success closes
the breaker. A health check beside it finds out without any request.
Source: Nygard, Release It!, 2007, chapter 5.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Literal

from lmworks.inference.statistics import TTFT_BUCKETS_S, Histogram
from lmworks.serving.gateway.config import BackendConfig, BreakerConfig
from lmworks.serving.gateway.dialects import Dialect, dialect
from lmworks.serving.gateway.upstream import Upstream, UpstreamFailure

State = Literal["closed", "open", "half-open"]
_WEIGHT_OF_NEW = 0.3  # in the moving average of latencies
_HALF_LIFE_S = 30.0  # after which a slow one is believed to be half as slow, and tried again
_HEALTH_WAIT_S = 5.0
_UNHEALTHY_AFTER = 2


class Backend:
    """State of one back end; used on the event loop only."""

    def __init__(
        self, name: str, config: BackendConfig, breaker: BreakerConfig, api_key: str = ""
    ) -> None:
        self.name, self.config = name, config
        self.dialect: Dialect = dialect(config.kind)
        self.upstream = Upstream(name, config, self.dialect.headers(api_key))
        self.in_flight = 0
        self.healthy = True
        self.requests = 0
        self.failures: Counter[str] = Counter()
        self.first_byte_s = Histogram(TTFT_BUCKETS_S)
        self._breaker = breaker
        self._failed_in_a_row = self._unhealthy_in_a_row = 0
        self._open_until_s = self._cool_until_s = 0.0
        self._probing = False
        self._latency_s: float | None = None
        self._measured_s = 0.0

    @property
    def state(self) -> State:
        """Of the breaker."""
        if self._failed_in_a_row < self._breaker.failures:
            return "closed"
        return "open" if time.monotonic() < self._open_until_s else "half-open"

    @property
    def available(self) -> bool:
        """Whether a request is to go there now."""
        return self.healthy and self.may_try

    @property
    def may_try(self) -> bool:
        """Whether a request may go there, whatever its health check last said."""
        if time.monotonic() < self._cool_until_s or self.is_full:
            return False
        state = self.state
        return state == "closed" or (state == "half-open" and not self._probing)

    @property
    def is_full(self) -> bool:
        """Whether it answers as many requests as it may."""
        return bool(self.config.max_parallel) and self.in_flight >= self.config.max_parallel

    def expected_s(self) -> float:
        """How long a first byte is likely to take; 0 when nothing is known."""
        if self._latency_s is None:
            return 0.0
        age_s = time.monotonic() - self._measured_s
        return self._latency_s * 0.5 ** (age_s / _HALF_LIFE_S) * (1 + self.in_flight)

    def begin(self) -> None:
        """A request goes there."""
        self.in_flight += 1
        self.requests += 1
        self._probing = self.state == "half-open"

    def answered(self, seconds: float) -> None:
        """Its first byte has come."""
        self._failed_in_a_row, self._probing = 0, False
        self.first_byte_s.observe(seconds)
        known = self._latency_s
        self._latency_s = seconds if known is None else known + _WEIGHT_OF_NEW * (seconds - known)
        self._measured_s = time.monotonic()

    def failed(self, failure: UpstreamFailure) -> None:
        """It did not answer. A refusal is an answer, and being asked to wait is no failure."""
        self.failures[failure.kind] += 1
        self._probing = False
        if failure.refusal is not None:
            self._failed_in_a_row = 0
        elif failure.kind == "unsupported":
            return
        elif failure.status == 429:
            self._cool_until_s = time.monotonic() + (failure.retry_after_s or 1.0)
        else:
            self._failed_in_a_row += 1
            self._open_until_s = time.monotonic() + self._breaker.open_s

    def end(self) -> None:
        """The request is over, however it ended."""
        self.in_flight -= 1
        self._probing = False

    async def check_health(self) -> None:
        """Ask for its health page; any answer but a 5xx is one of a server that lives."""
        wait_s = min(_HEALTH_WAIT_S, self.config.first_byte_s)
        try:
            response = await self.upstream.get(self.config.health_path, wait_s)
            await response.close()
            well = response.status < 500
        except UpstreamFailure:
            well = False
        self._unhealthy_in_a_row = 0 if well else self._unhealthy_in_a_row + 1
        self.healthy = self._unhealthy_in_a_row < _UNHEALTHY_AFTER

    async def close(self) -> None:
        """Close its connections."""
        await self.upstream.close()
