"""Who has used how much: reservations before a request, what it really cost after, usage per day.

`LocalLedger` is for one gateway: counters live in memory, where a check and a reservation are one
step since nothing else runs on the loop in between, and every step is in the store before the
request goes on. `RedisLedger` has the same methods for several gateways.

A request that is running has a row in `open_requests`. A gateway that was killed leaves those rows:
the next start settles them at the estimate of the prompt plus what was streamed until the last
second, so that at most the tokens of that second, and answers that were still being written whole,
go uncounted.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lmworks.core.errors import UserError
from lmworks.serving.gateway.keys import Key
from lmworks.serving.gateway.limits import (
    Bucket,
    Cost,
    Limits,
    Window,
    bucket_refusal,
    buckets,
    window_refusal,
    windows,
)
from lmworks.serving.gateway.store import Statement, Store

USAGE_COUNTS = (
    "requests",
    "errors",
    "cache_hits",
    "interrupted",
    "prompt_tokens",
    "completion_tokens",
    "nano",
)


@dataclasses.dataclass(kw_only=True, slots=True)
class Ticket:
    """A request that was let in: what is reserved for it, and what it has used so far."""

    id: str
    key_id: str
    model: str
    started_s: float
    windows: list[Window]
    buckets: list[Bucket]
    reserved: Cost
    prompt_tokens: int
    written_tokens: int = 0
    nano: int = 0
    told_tokens: int = 0
    left: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Used:
    """How a request ended, for the usage of its day."""

    key_id: str
    model: str
    backend: str = ""
    day: str = ""
    requests: int = 1
    errors: int = 0
    cache_hits: int = 0
    interrupted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    nano: int = 0

    def dated(self, time_s: float) -> Used:
        """With the day of a time, UTC."""
        day = time.strftime("%Y-%m-%d", time.gmtime(time_s))
        return dataclasses.replace(self, day=day)


def new_ticket(
    request_id: str, key: Key, model: str, reserved: Cost, prompt_tokens: int, limits: Limits
) -> Ticket:
    """A ticket under the limits that hold for the key."""
    now_s = time.time()
    return Ticket(
        id=request_id,
        key_id=key.id,
        model=model,
        started_s=now_s,
        windows=windows(key.id, limits, now_s),
        buckets=buckets(key.id, limits),
        reserved=reserved,
        prompt_tokens=prompt_tokens,
    )


class Ledger(Protocol):
    """What the door asks of whoever counts."""

    async def find_key(self, key_id: str) -> Key | None:
        """The key as it is now: a revocation holds from the next request on."""
        ...

    async def put_key(self, key: Key) -> None:
        """Make or change a key."""
        ...

    async def list_keys(self) -> list[Key]:
        """All keys, the oldest first."""
        ...

    async def left(self, key: Key, limits: Limits) -> dict[str, int]:
        """What is left in the key's windows, by metric; the window with the least counts."""
        ...

    async def admit(self, ticket: Ticket) -> None:
        """Reserve all of it or nothing. Raises: Refused."""
        ...

    async def settle(
        self, ticket: Ticket, cost: Cost, used: Used, log: Sequence[Statement]
    ) -> None:
        """Put the true cost in place of the reservation, and write usage and log."""
        ...

    async def progress(self, tickets: Sequence[Ticket]) -> None:
        """Keep how far running requests are."""
        ...

    async def usage(self, since_day: str) -> list[dict[str, Any]]:
        """Rows of day, key_id, model, backend and the counts."""
        ...

    async def settle_lost(self) -> int:
        """Settle what killed gateways left open. Returns: how many requests."""
        ...

    async def close(self) -> None: ...


class LocalLedger:
    """Counters in memory over a store that this process alone writes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counters: dict[str, list[int]] = {}  # window -> [used, end]
        self._levels: dict[str, tuple[float, float]] = {}  # bucket -> (level, when)

    async def find_key(self, key_id: str) -> Key | None:
        """See `Ledger`."""
        found = self._store.rows("SELECT * FROM keys WHERE id = ?", (key_id,))
        return key_of(found[0]) if found else None

    async def put_key(self, key: Key) -> None:
        """See `Ledger`."""
        values = row_of(key)
        marks = ", ".join("?" * len(values))
        names = ", ".join(values)
        sql = f"INSERT OR REPLACE INTO keys ({names}) VALUES ({marks})"
        self._store.write((sql, tuple(values.values())))

    async def list_keys(self) -> list[Key]:
        """See `Ledger`."""
        return [key_of(row) for row in self._store.rows("SELECT * FROM keys ORDER BY created_s")]

    async def left(self, key: Key, limits: Limits) -> dict[str, int]:
        """See `Ledger`."""
        found: dict[str, int] = {}
        for window in windows(key.id, limits, time.time()):
            left = window.limit - self._used(window)
            found[window.metric] = min(left, found.get(window.metric, left))
        return found

    async def admit(self, ticket: Ticket) -> None:
        """See `Ledger`."""
        now_s, wall_s = time.monotonic(), time.time()
        for window in ticket.windows:
            amount, used = getattr(ticket.reserved, window.metric), self._used(window)
            if amount and used + amount > window.limit:
                raise window_refusal(window, used, amount, wall_s)
        for bucket in ticket.buckets:
            amount, level = getattr(ticket.reserved, bucket.metric), self._level(bucket, now_s)
            if level < amount:
                raise bucket_refusal(bucket, level, amount)
        for bucket in ticket.buckets:
            level = self._level(bucket, now_s) - getattr(ticket.reserved, bucket.metric)
            self._levels[bucket.name] = (level, now_s)
            ticket.left[bucket.metric] = max(0, int(level))
        moved = self._move(ticket, ticket.reserved)
        try:
            await self._store.commit(*moved, open_statement(ticket))
        except UserError:
            self._move(ticket, Cost(*(-amount for amount in ticket.reserved)))
            raise

    async def settle(
        self, ticket: Ticket, cost: Cost, used: Used, log: Sequence[Statement]
    ) -> None:
        """See `Ledger`."""
        change = Cost(*(true - kept for true, kept in zip(cost, ticket.reserved, strict=True)))
        now_s = time.monotonic()
        for bucket in ticket.buckets:
            level = self._level(bucket, now_s) - getattr(change, bucket.metric)
            self._levels[bucket.name] = (min(bucket.capacity, level), now_s)
        moved = self._move(ticket, change)
        closing = ("DELETE FROM open_requests WHERE id = ?", (ticket.id,))
        await self._store.commit(*moved, closing, usage_statement(used), *log)

    async def progress(self, tickets: Sequence[Ticket]) -> None:
        """See `Ledger`."""
        sql = "UPDATE open_requests SET written_tokens = ?, nano = ? WHERE id = ?"
        await self._store.commit(*((sql, (t.written_tokens, t.nano, t.id)) for t in tickets))

    async def usage(self, since_day: str) -> list[dict[str, Any]]:
        """See `Ledger`."""
        return self._store.rows("SELECT * FROM usage WHERE day >= ? ORDER BY day", (since_day,))

    async def settle_lost(self) -> int:
        """See `Ledger`. The store is this process's alone, so whatever is open was lost."""
        lost = self._store.rows("SELECT * FROM open_requests")
        statements: list[Statement] = []
        for row in lost:
            spent = row["prompt_tokens"] + row["written_tokens"]
            true = {"requests": 1, "tokens": spent, "nano": row["nano"]}
            for name, metric, reserved, _ in json.loads(row["reserved"]):
                change = true[metric] - reserved
                sql = "UPDATE counters SET value = value + ? WHERE name = ?"
                statements.append((sql, (change, name)))
            statements.append(usage_statement(lost_usage(row)))
            statements.append(("DELETE FROM open_requests WHERE id = ?", (row["id"],)))
        self._store.write(*statements)
        return len(lost)

    async def close(self) -> None:
        """Nothing is held."""

    def forget_ended(self) -> None:
        """Drop windows that ended a day ago, on which no request can be running."""
        before_s = time.time() - 86400
        ended = [name for name, (_, ends_s) in self._counters.items() if ends_s < before_s]
        for name in ended:
            del self._counters[name]

    def _used(self, window: Window) -> int:
        kept = self._counters.get(window.name)
        if kept is None:
            row = self._store.row("SELECT value FROM counters WHERE name = ?", (window.name,))
            kept = self._counters[window.name] = [row[0] if row else 0, window.ends_s]
        return kept[0]

    def _level(self, bucket: Bucket, now_s: float) -> float:
        level, then_s = self._levels.get(bucket.name, (bucket.capacity, now_s))
        return min(bucket.capacity, level + (now_s - then_s) * bucket.per_s)

    def _move(self, ticket: Ticket, change: Cost) -> list[Statement]:
        """Add to the counters in memory; the statements that do the same on disk."""
        statements: list[Statement] = []
        for window in ticket.windows:
            amount = getattr(change, window.metric)
            self._counters[window.name] = [self._used(window) + amount, window.ends_s]
            sql = (
                "INSERT INTO counters VALUES (?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
            )
            statements.append((sql, (window.name, amount, window.ends_s)))
        return statements


def key_of(row: Mapping[str, Any]) -> Key:
    """A key out of its row."""
    values = {**row, "admin": bool(row["admin"]), "models": tuple(json.loads(row["models"]))}
    return Key(**{**values, "limits": Limits(**json.loads(row["limits"]))})


def row_of(key: Key) -> dict[str, Any]:
    """A key as its row."""
    values = {field.name: getattr(key, field.name) for field in dataclasses.fields(Key)}
    texts = {"models": json.dumps(key.models), "limits": json.dumps(key.limits.plain())}
    return values | {"admin": int(key.admin)} | texts


def reserved_of(ticket: Ticket) -> list[tuple[str, str, int, int]]:
    """(window, metric, amount, end) of all that is reserved."""
    return [
        (w.name, w.metric, getattr(ticket.reserved, w.metric), w.ends_s) for w in ticket.windows
    ]


def open_statement(ticket: Ticket) -> Statement:
    """The row of a request that begins."""
    values = (
        ticket.id,
        ticket.key_id,
        ticket.model,
        ticket.started_s,
        json.dumps(reserved_of(ticket)),
        ticket.prompt_tokens,
        0,
        ticket.nano,
    )
    return ("INSERT INTO open_requests VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)


def lost_usage(row: Mapping[str, Any]) -> Used:
    """What is counted of a request whose gateway was killed."""
    used = Used(
        key_id=row["key_id"],
        model=row["model"],
        interrupted=1,
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["written_tokens"],
        nano=row["nano"],
    )
    return used.dated(row["started_s"])


def usage_statement(used: Used) -> Statement:
    """Add to the usage of a day."""
    sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in USAGE_COUNTS)
    sql = (
        "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        f"ON CONFLICT (day, key_id, model, backend) DO UPDATE SET {sums}"
    )
    counts = tuple(getattr(used, name) for name in USAGE_COUNTS)
    return (sql, (used.day, used.key_id, used.model, used.backend, *counts))
