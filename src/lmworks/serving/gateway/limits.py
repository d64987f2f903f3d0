"""What a key may use: rates, quotas and budgets, as counters that are checked before a request.

Two kinds of rule, both in whole numbers so that nothing drifts:

- a **window** (a day or a month in UTC) has a limit and a counter that begins at 0;
- a **bucket** (token bucket) holds at most `capacity` and fills by `per_s`; a request takes of it.

A request reserves what it may cost at most before it is sent on, all rules at once or none; when
it is over, what it really cost takes the place of the reservation. So the limit on requests is
exact, and limits on tokens and money are kept while many requests run. Only the prompt is an
estimate until the back end has counted it: what is written can't be more than the `max_tokens`
sent along.

Money is counted in billionths of the currency ("nano"): prices are per million tokens.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from lmworks.core.config import from_mapping, option
from lmworks.core.errors import UserError
from lmworks.serving.errors import ApiError
from lmworks.serving.gateway.config import PriceConfig

Metric = Literal["requests", "tokens", "nano"]
NANO = 10**9
_DAY_S = 86400
_WORDS = {"requests": "requests", "tokens": "tokens", "nano": "money"}


class Cost(NamedTuple):
    """What a request costs, or may cost."""

    requests: int = 0
    tokens: int = 0
    nano: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one key may use; None: no limit."""

    requests_per_minute: float | None = option(None, help="rate of requests")
    tokens_per_minute: float | None = option(None, help="rate of tokens, read and written")
    burst: int | None = option(None, help="requests at once; by default those of a minute")
    requests_per_day: int | None = option(None, help="requests from midnight to midnight, UTC")
    requests_per_month: int | None = option(None, help="requests in a calendar month, UTC")
    tokens_per_day: int | None = option(None, help="tokens a day")
    tokens_per_month: int | None = option(None, help="tokens a month")
    budget_per_day: float | None = option(None, help="money a day")
    budget_per_month: float | None = option(None, help="money a month")

    @classmethod
    def of(cls, values: Mapping[str, Any], *, where: str = "limits") -> Limits:
        """From plain values. Raises: UserError for an unknown key or a value that is not valid."""
        limits = from_mapping(cls, values, where=where)
        for name, value in dataclasses.asdict(limits).items():
            if value is not None and not (0 <= value < 1e15):
                raise UserError(f"{where}: {name} = {value} is not valid: from 0 upwards")
        return limits

    def over(self, defaults: Limits) -> Limits:
        """These where given, else `defaults`."""
        return Limits(**(defaults.plain() | self.plain()))

    def plain(self) -> dict[str, Any]:
        """Those that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A counter with a limit and an end."""

    name: str
    metric: Metric
    period: Literal["day", "month"]
    limit: int
    ends_s: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """A token bucket."""

    name: str
    metric: Metric
    capacity: float
    per_s: float


def windows(key_id: str, limits: Limits, now_s: float) -> list[Window]:
    """The windows that `now_s` (Unix time) falls into. Names hold key, metric and start."""
    day = datetime.datetime.fromtimestamp(now_s, datetime.UTC).date()
    next_month = (day.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
    spans: list[tuple[Literal["day", "month"], str, datetime.date]] = [
        ("day", day.isoformat(), day + datetime.timedelta(days=1)),
        ("month", day.strftime("%Y-%m"), next_month),
    ]
    made = []
    for period, start, end in spans:
        ends_s = (end - datetime.date(1970, 1, 1)).days * _DAY_S
        given: list[tuple[Metric, float | None]] = [
            ("requests", getattr(limits, f"requests_per_{period}")),
            ("tokens", getattr(limits, f"tokens_per_{period}")),
            ("nano", _nano(getattr(limits, f"budget_per_{period}"))),
        ]
        for metric, limit in given:
            if limit is not None:
                name = f"{key_id}:{metric}:{period}:{start}"
                made.append(
                    Window(name=name, metric=metric, period=period, limit=int(limit), ends_s=ends_s)
                )
    return made


def _nano(money: float | None) -> int | None:
    return None if money is None else round(money * NANO)


def buckets(key_id: str, limits: Limits) -> list[Bucket]:
    """The key's token buckets."""
    made = []
    if (rate := limits.requests_per_minute) is not None:
        capacity = limits.burst if limits.burst is not None else max(1.0, rate)
        name = f"{key_id}:requests:bucket"
        made.append(Bucket(name=name, metric="requests", capacity=capacity, per_s=rate / 60))
    if (rate := limits.tokens_per_minute) is not None:
        name = f"{key_id}:tokens:bucket"
        made.append(Bucket(name=name, metric="tokens", capacity=rate, per_s=rate / 60))
    return made


def money(price: PriceConfig, prompt: int, completion: int, cached: int = 0) -> int:
    """What tokens cost, in billionths. A price per million is 1000 times one per token in nano."""
    cached_price = price.input if price.cached_input is None else price.cached_input
    exact = (prompt - cached) * price.input + cached * cached_price + completion * price.output
    return math.ceil(exact * 1000 - 1e-6)


class Refused(ApiError):
    """429: a limit is reached; says which, what is left of it, and when to come back."""

    def __init__(self, message: str, *, code: str, retry_after_s: float) -> None:
        super().__init__(429, message, code=code)
        self.retry_after_s = retry_after_s

    def response(self, path: str = "") -> Any:
        """With `Retry-After` in whole seconds, rounded up."""
        answer = super().response(path)
        answer.headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        return answer


def window_refusal(window: Window, used: int, amount: int, now_s: float) -> Refused:
    """The error for a window that is full, or too full for `amount`."""
    left = max(0, window.limit - used)
    what = _WORDS[window.metric]
    if window.metric == "nano":
        told = f"{_shown(left)} of {_shown(window.limit)} is left, {_shown(amount)} may be needed"
    else:
        told = f"{left} of {window.limit} are left, {amount} may be needed"
    ends = datetime.datetime.fromtimestamp(window.ends_s, datetime.UTC)
    period = "today" if window.period == "day" else "this month"
    return Refused(
        f"this key's {what} for {period}: {told}; it begins anew at {ends:%Y-%m-%d %H:%M} UTC",
        code="insufficient_quota",
        retry_after_s=max(1.0, window.ends_s - now_s),
    )


def bucket_refusal(bucket: Bucket, level: float, amount: float) -> Refused:
    """The error for a bucket that holds too little."""
    per_minute = bucket.per_s * 60
    what = _WORDS[bucket.metric]
    if amount > bucket.capacity:
        return Refused(
            f"this key may use {per_minute:g} {what} per minute and {bucket.capacity:g} at once: "
            f"this request may need {amount:g}: lower max_tokens or shorten the prompt",
            code="rate_limit_exceeded",
            retry_after_s=60.0,
        )
    wait_s = (amount - level) / bucket.per_s if bucket.per_s else 3600.0
    return Refused(
        f"this key may use {per_minute:g} {what} per minute: try again in {wait_s:.1f} s",
        code="rate_limit_exceeded",
        retry_after_s=wait_s,
    )


def _shown(nano: int) -> str:
    return f"{nano / NANO:.6f}".rstrip("0").rstrip(".") or "0"
