"""Keys, counters and usage in Redis, for several gateways that act as one.

Each step is one Lua script, which Redis runs as if it were alone: the check of all rules and the
reservation are one step for every gateway together. Buckets fill by Redis' clock, so that the
gateways' own need not agree. The request log and the audit log stay with each gateway.

A running request stands in `open` with the name of its gateway, which says every few seconds that
it lives. What belongs to one that has fallen silent is settled by the others: at the estimate of
its prompt and what was streamed until its last second.

Left out: Redis Cluster, since a script touches keys of several slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from lmworks.core.errors import MissingExtra, UserError
from lmworks.serving.errors import ApiError
from lmworks.serving.gateway.keys import Key
from lmworks.serving.gateway.ledger import (
    USAGE_COUNTS,
    Ticket,
    Used,
    key_of,
    lost_usage,
    reserved_of,
    row_of,
)
from lmworks.serving.gateway.limits import (
    Cost,
    Limits,
    bucket_refusal,
    window_refusal,
    windows,
)
from lmworks.serving.gateway.store import Statement, Store

_PREFIX = "lmworks:gateway:"
_ALIVE_S = 15
_BEAT_S = 4.0
_WAIT_S = 2.0

# KEYS: open, windows, buckets. ARGV: number of windows, number of buckets, request, its row, then
# for each window amount, limit and end, for each bucket amount, capacity and rate.
# Returns: {0, 0, levels} when let in, {1, i, used} or {2, i, level} for the rule that refuses.
_ADMIT = """
local nw, nb = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
for i = 1, nw do
  local amount, limit = tonumber(ARGV[2 + 3 * i]), tonumber(ARGV[3 + 3 * i])
  local used = tonumber(redis.call('GET', KEYS[1 + i]) or '0')
  if amount > 0 and used + amount > limit then return {1, i, string.format('%.0f', used)} end
end
local levels = {0, 0}
for i = 1, nb do
  local at = 2 + 3 * nw + 3 * i
  local amount, capacity, rate = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local kept = redis.call('HMGET', KEYS[1 + nw + i], 'level', 'at')
  local level = capacity
  if kept[1] then
    level = math.min(capacity, tonumber(kept[1]) + math.max(0, now - tonumber(kept[2])) * rate)
  end
  if level < amount then return {2, i, string.format('%.17g', level)} end
  levels[2 + i] = string.format('%.17g', level - amount)
end
for i = 1, nw do
  redis.call('INCRBY', KEYS[1 + i], ARGV[2 + 3 * i])
  redis.call('EXPIREAT', KEYS[1 + i], tonumber(ARGV[4 + 3 * i]) + 172800)
end
for i = 1, nb do
  local key, at = KEYS[1 + nw + i], 2 + 3 * nw + 3 * i
  redis.call('HSET', key, 'level', levels[2 + i], 'at', string.format('%.6f', now))
  redis.call('EXPIRE', key, 86400)
end
redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
return levels
"""

# KEYS: open, usage of the day, windows, buckets. ARGV: number of windows, number of buckets,
# request, number of counts, field and count of each, change of each window, change, capacity and
# rate of each bucket. Usage is kept for 800 days.
# Returns: 0 for a request that was settled before, and changes nothing.
_SETTLE = """
if redis.call('HDEL', KEYS[1], ARGV[3]) == 0 then return 0 end
local nw, nb, nc = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
for i = 1, nc do redis.call('HINCRBY', KEYS[2], ARGV[3 + 2 * i], ARGV[4 + 2 * i]) end
redis.call('EXPIRE', KEYS[2], 69120000)
local at = 4 + 2 * nc
for i = 1, nw do
  if ARGV[at + i] ~= '0' and redis.call('EXISTS', KEYS[2 + i]) == 1 then
    redis.call('INCRBY', KEYS[2 + i], ARGV[at + i])
  end
end
at = at + nw
for i = 1, nb do
  local key = KEYS[2 + nw + i]
  local level = redis.call('HGET', key, 'level')
  if level then
    local capacity = tonumber(ARGV[at + 3 * i - 1])
    level = math.min(capacity, tonumber(level) - tonumber(ARGV[at + 3 * i - 2]))
    redis.call('HSET', key, 'level', string.format('%.17g', level))
  end
end
return 1
"""

_PROGRESS = """
for i = 1, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
"""


class StoreUnavailable(ApiError, UserError):
    """Redis does not answer; nobody is let in without being counted."""

    def __init__(self) -> None:
        message = "the gateways' shared counters can't be reached: try again in a few seconds"
        ApiError.__init__(self, 503, message, code="store_unavailable")


class RedisLedger:
    """See `ledger.Ledger`.

    Args:
        url: `redis://...`, or `env:NAME` for a variable that holds it.
        store: this gateway's own, for the request log; none for commands.
    """

    def __init__(self, url: str, store: Store | None = None) -> None:
        try:
            import redis
            import redis.asyncio
        except ImportError as error:
            raise MissingExtra("redis", "gateway", "sharing limits between gateways") from error
        if url.startswith("env:"):
            url = os.environ.get(url[4:], "") or _missing(url[4:])
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=64,
            timeout=_WAIT_S,
            socket_timeout=_WAIT_S,
            socket_connect_timeout=_WAIT_S,
            decode_responses=True,
        )
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._error: type[Exception] = redis.RedisError
        self._store = store
        self._gateway = secrets.token_hex(6)
        self._admit = self._redis.register_script(_ADMIT)
        self._settle = self._redis.register_script(_SETTLE)
        self._progress = self._redis.register_script(_PROGRESS)
        self._beats: asyncio.Task[None] | None = None

    async def find_key(self, key_id: str) -> Key | None:
        """See `Ledger`."""
        async with self._reached():
            text = await self._redis.hget(_PREFIX + "keys", key_id)
        return _key(text) if text else None

    async def put_key(self, key: Key) -> None:
        """See `Ledger`."""
        text = json.dumps({**row_of(key), "hash": key.hash.hex()})
        async with self._reached():
            await self._redis.hset(_PREFIX + "keys", key.id, text)

    async def list_keys(self) -> list[Key]:
        """See `Ledger`."""
        async with self._reached():
            texts = await self._redis.hvals(_PREFIX + "keys")
        return sorted((_key(text) for text in texts), key=lambda key: key.created_s)

    async def left(self, key: Key, limits: Limits) -> dict[str, int]:
        """See `Ledger`."""
        rules = windows(key.id, limits, time.time())
        if not rules:
            return {}
        async with self._reached():
            used = await self._redis.mget([_window(rule.name) for rule in rules])
        found: dict[str, int] = {}
        for rule, value in zip(rules, used, strict=True):
            left = rule.limit - int(value or 0)
            found[rule.metric] = min(left, found.get(rule.metric, left))
        return found

    async def admit(self, ticket: Ticket) -> None:
        """See `Ledger`."""
        arguments: list[Any] = [len(ticket.windows), len(ticket.buckets), ticket.id]
        arguments.append(self._row(ticket))
        amounts = [getattr(ticket.reserved, rule.metric) for rule in _rules(ticket)]
        for window in ticket.windows:
            arguments += [getattr(ticket.reserved, window.metric), window.limit, window.ends_s]
        for bucket in ticket.buckets:
            amount = getattr(ticket.reserved, bucket.metric)
            arguments += [amount, repr(float(bucket.capacity)), repr(float(bucket.per_s))]
        async with self._reached():
            answer = await self._admit(keys=[_PREFIX + "open", *_names(ticket)], args=arguments)
        kind, place = int(answer[0]), int(answer[1]) - 1
        if kind == 1:
            used = int(answer[2])
            raise window_refusal(ticket.windows[place], used, amounts[place], time.time())
        if kind == 2:
            amount = amounts[len(ticket.windows) + place]
            raise bucket_refusal(ticket.buckets[place], float(answer[2]), amount)
        for bucket, level in zip(ticket.buckets, answer[2:], strict=True):
            ticket.left[bucket.metric] = max(0, int(float(level)))

    async def settle(
        self, ticket: Ticket, cost: Cost, used: Used, log: Sequence[Statement]
    ) -> None:
        """See `Ledger`."""
        change = Cost(*(true - kept for true, kept in zip(cost, ticket.reserved, strict=True)))
        arguments: list[Any] = [getattr(change, window.metric) for window in ticket.windows]
        for bucket in ticket.buckets:
            amount = getattr(change, bucket.metric)
            arguments += [amount, repr(float(bucket.capacity)), repr(float(bucket.per_s))]
        counts = (len(ticket.windows), len(ticket.buckets))
        await self._settled(ticket.id, used, _names(ticket), counts, arguments)
        if self._store:
            await self._store.commit(*log)

    async def _settled(
        self,
        request_id: str,
        used: Used,
        names: list[str],
        counts: tuple[int, int],
        changes: list[Any],
    ) -> bool:
        fields: list[Any] = []
        for name in USAGE_COUNTS:
            if value := getattr(used, name):
                field = json.dumps([used.key_id, used.model, used.backend, name])
                fields += [field, value]
        arguments = [*counts, request_id, len(fields) // 2, *fields, *changes]
        keys = [_PREFIX + "open", _PREFIX + "usage:" + used.day, *names]
        async with self._reached():
            return bool(await self._settle(keys=keys, args=arguments))

    async def progress(self, tickets: Sequence[Ticket]) -> None:
        """See `Ledger`."""
        arguments = [part for ticket in tickets for part in (ticket.id, self._row(ticket))]
        async with self._reached():
            await self._progress(keys=[_PREFIX + "open"], args=arguments)

    async def usage(self, since_day: str) -> list[dict[str, Any]]:
        """See `Ledger`."""
        day, today = datetime.date.fromisoformat(since_day), datetime.datetime.now(datetime.UTC)
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        while day <= today.date():
            name = day.isoformat()
            async with self._reached():
                found = await self._redis.hgetall(_PREFIX + "usage:" + name)
            for field, value in found.items():
                key_id, model, backend, count = json.loads(field)
                place = (name, key_id, model, backend)
                empty = dict(zip(("day", "key_id", "model", "backend"), place, strict=True))
                row = rows.setdefault(place, {**empty, **dict.fromkeys(USAGE_COUNTS, 0)})
                row[count] = int(value)
            day += datetime.timedelta(days=1)
        return list(rows.values())

    async def settle_lost(self) -> int:
        """See `Ledger`; from the first call on, this gateway says that it lives."""
        await self._beat()
        if self._beats is None:
            self._beats = asyncio.create_task(self._beat_on())
        async with self._reached():
            rows = await self._redis.hgetall(_PREFIX + "open")
        number, alive = 0, {self._gateway: True}
        for request_id, text in rows.items():
            row = json.loads(text)
            owner = row["gateway"]
            if owner not in alive:
                async with self._reached():
                    alive[owner] = bool(await self._redis.exists(f"{_PREFIX}alive:{owner}"))
            if not alive[owner]:
                number += await self._settle_one(request_id, row)
        return number

    async def close(self) -> None:
        """Say good-bye, and close the connections."""
        if self._beats:
            self._beats.cancel()
            await asyncio.gather(self._beats, return_exceptions=True)
            with contextlib.suppress(self._error, OSError):
                await self._redis.delete(f"{_PREFIX}alive:{self._gateway}")
        await self._redis.aclose()

    async def _settle_one(self, request_id: Any, row: Mapping[str, Any]) -> bool:
        spent = row["prompt_tokens"] + row["written_tokens"]
        true = {"requests": 1, "tokens": spent, "nano": row["nano"]}
        rules = row["reserved"]
        changes = [true[metric] - reserved for _, metric, reserved, _ in rules]
        names = [_window(name) for name, _, _, _ in rules]
        return await self._settled(request_id, lost_usage(row), names, (len(rules), 0), changes)

    async def _beat(self) -> None:
        async with self._reached():
            await self._redis.set(f"{_PREFIX}alive:{self._gateway}", "1", ex=_ALIVE_S)

    async def _beat_on(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(_BEAT_S)
            with contextlib.suppress(StoreUnavailable):
                await self._beat()
                turn += 1
                if turn % 4 == 0:
                    await self.settle_lost()

    def _row(self, ticket: Ticket) -> str:
        row = {
            "gateway": self._gateway,
            "key_id": ticket.key_id,
            "model": ticket.model,
            "started_s": ticket.started_s,
            "reserved": reserved_of(ticket),
            "prompt_tokens": ticket.prompt_tokens,
            "written_tokens": ticket.written_tokens,
            "nano": ticket.nano,
        }
        return json.dumps(row)

    @contextlib.asynccontextmanager
    async def _reached(self) -> AsyncIterator[None]:
        try:
            yield
        except (self._error, OSError) as error:
            raise StoreUnavailable() from error


def _missing(name: str) -> str:
    raise UserError(f"redis: the environment variable {name} is not set")


def _window(name: str) -> str:
    return f"{_PREFIX}window:{name}"


def _rules(ticket: Ticket) -> list[Any]:
    return [*ticket.windows, *ticket.buckets]


def _names(ticket: Ticket) -> list[str]:
    buckets = [f"{_PREFIX}bucket:{bucket.name}" for bucket in ticket.buckets]
    return [*(_window(window.name) for window in ticket.windows), *buckets]


def _key(text: Any) -> Key:
    row = json.loads(text)
    return key_of({**row, "hash": bytes.fromhex(row["hash"])})
