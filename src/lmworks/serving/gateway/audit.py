"""An append-only log of what admins did, chained so that a change of the past shows.

Each entry holds an HMAC over its own fields and the entry before it. Who alters, removes or puts
in an entry would have to make all later ones anew, for which the pepper is needed; the database
itself refuses UPDATE and DELETE on the table. Entries cut off at the end leave a chain that is
right as far as it goes: keep the head that `verify` prints elsewhere, for the next `verify`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

START = "0" * 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing that was done."""

    number: int
    time_s: float
    actor: str
    action: str
    details: Mapping[str, Any]
    before: str
    hash: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check of the chain found; `fault` is empty for one that is whole."""

    entries: int
    head: str
    fault: str = ""


def next_entry(
    pepper: bytes, last: Entry | None, actor: str, action: str, details: Mapping[str, Any]
) -> Entry:
    """The entry that follows `last`."""
    number, before = (last.number + 1, last.hash) if last else (1, START)
    entry = Entry(
        number=number,
        time_s=round(time.time(), 3),
        actor=actor,
        action=action,
        details=dict(details),
        before=before,
        hash="",
    )
    return dataclasses.replace(entry, hash=_hash(pepper, entry))


def verify(pepper: bytes, entries: Iterable[Entry], head: str = "") -> Verdict:
    """Check the whole chain, in order.

    Args:
        head: a hash that an earlier check printed; it must still be in the chain.
    """
    count, last, seen = 0, START, head in ("", START)
    for entry in entries:
        count += 1
        if entry.number != count:
            fault = f"entry {count} is missing: number {entry.number} stands in its place"
            return Verdict(entries=count - 1, head=last, fault=fault)
        if entry.before != last or not hmac.compare_digest(entry.hash, _hash(pepper, entry)):
            fault = f"entry {count} was changed after it was written, or under another secret"
            return Verdict(entries=count - 1, head=last, fault=fault)
        last = entry.hash
        seen = seen or last == head
    fault = "" if seen else f"entries were cut off: the head {head[:16]}... is not in the chain"
    return Verdict(entries=count, head=last, fault=fault)


def _hash(pepper: bytes, entry: Entry) -> str:
    fields = [entry.number, entry.time_s, entry.actor, entry.action, entry.details, entry.before]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hmac.digest(b"audit:" + pepper, text.encode(), hashlib.sha256).hex()
