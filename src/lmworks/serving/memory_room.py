"""Who is in memory: things that are loaded when they are asked for, within a budget.

A `Unit` is a model, or an adapter that stands on one. Who needs it takes a `Lease`; a unit without
leases is idle, and the one that was idle longest makes room for the next (least recently used).

- Room is set aside before loading begins, so the sum never exceeds the budget.
- Who asks for a unit that another is loading waits for that, and shares its failure.
- Those who need room stand in line, first come, first served. When the first of them has waited a
  while and all that is there is in use, those in use longest take no new requests until they are
  idle: nobody waits for ever behind a model that is never quiet.

Nothing here knows what is loaded; `model_pool` brings that.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.quantities import shown_bytes
from lmworks.serving.memory_units import DoesNotFit, Lease, LoadFailed, NoRoom, Unit

PATIENCE_S = 2.0
WAIT_S = 120.0


class MemoryRoom:
    """Units within a budget.

    Args:
        budget: bytes for all units together; None: no limit.
        wait_s: how long a request waits for room or for another's loading.
        patience_s: how long the first in line waits before it asks others to make way.
        clock: for tests.
    """

    def __init__(
        self,
        budget: int | None = None,
        *,
        wait_s: float = WAIT_S,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget, self._wait_s, self._patience_s = budget, wait_s, patience_s
        self._clock = clock
        self._units: dict[str, Unit] = {}
        self._line: deque[Unit] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._keeper: threading.Thread | None = None
        self.num_evictions = 0
        self.peak_bytes = 0

    def add(self, unit: Unit) -> None:
        """Make a unit known. Raises: UserError for a name that is taken."""
        with self._changed:
            if unit.name in self._units:
                raise UserError(f"two models are called {unit.name!r}: give one another name")
            self._units[unit.name] = unit
            if unit.keep_alive_s is not None and self._keeper is None:
                self._keeper = threading.Thread(
                    target=self._keep, name="lmworks-keep-alive", daemon=True
                )
                self._keeper.start()

    def forget(self, unit: Unit) -> None:
        """Unload a unit (see `release_memory`) and make it unknown."""
        self.release_memory(unit)
        with self._changed:
            self._units.pop(unit.name, None)

    @property
    def used_bytes(self) -> int:
        """Bytes of what is there or on its way."""
        return sum(unit.num_bytes or 0 for unit in self._units.values() if unit.reserved)

    @property
    def units(self) -> Iterator[Unit]:
        """All units, in the order in which they were added."""
        return iter(list(self._units.values()))

    def acquire(self, unit: Unit) -> Lease:
        """The use of `unit`, loaded if need be; blocks meanwhile.

        Raises: DoesNotFit, NoRoom; LoadFailed for what `load` raised.
        """
        chain = [unit] if unit.parent is None else [unit.parent, unit]
        until = self._clock() + self._wait_s
        with self._changed:
            while True:
                if self._closed:
                    raise UserError("the server is shutting down")
                if all(each.state == "ready" and not each.closing for each in chain):
                    for each in chain:
                        each.leases += 1
                        each.last_used_s = self._clock()
                    return Lease(self, chain)
                missing = next(each for each in chain if each.state != "ready" or each.closing)
                if missing.state == "unloaded" and not missing.closing:
                    self._lead(missing, until)
                else:
                    self._await(missing, until)

    def release_memory(self, unit: Unit, timeout_s: float | None = None) -> bool:
        """Unload a unit and what stands on it, when all that use it have ended.

        New requests for it wait, and load it again afterwards. Returns whether it was loaded.
        Raises: NoRoom if it stayed in use for `timeout_s` (None: as long as one may wait).
        """
        until = self._clock() + (self._wait_s if timeout_s is None else timeout_s)
        with self._changed:
            chain = [*self._children(unit), unit]
            for each in chain:
                each.closing += 1
            try:
                if unit.state == "unloaded":
                    return False
                for each in chain:
                    while each.state != "unloaded":
                        if each.state == "ready" and not each.leases:
                            self._evict(each)
                        elif not self._wait(until):
                            raise NoRoom(f"{each.name} is still in use: try again later")
                return True
            finally:
                for each in chain:
                    each.closing -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Unload everything, in use or not."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for unit in sorted(self.units, key=lambda each: each.parent is None):
                if unit.state == "ready":
                    self._evict(unit)

    def end_lease(self, chain: Sequence[Unit]) -> None:
        """Called by a `Lease`."""
        with self._changed:
            for unit in chain:
                unit.leases -= 1
                unit.last_used_s = self._clock()
            self._changed.notify_all()

    # --- from here on: with the lock held ---

    def _await(self, unit: Unit, until: float) -> None:
        """Wait until something changes of a unit that is on its way in or out."""
        attempt, loading = unit.attempts, unit.state == "loading"
        if not self._wait(until):
            raise NoRoom(f"{unit.name} is not ready after {self._wait_s:g} s: try again later")
        # Whoever waited for a loading that failed is told, once; who comes later tries again.
        failed = loading and unit.state == "unloaded" and unit.attempts == attempt
        if failed and unit.failure is not None:
            raise unit.failure

    def _wait(self, until: float) -> bool:
        left = until - self._clock()
        return (left > 0 and self._changed.wait(min(left, 0.5))) or self._clock() < until

    def _lead(self, unit: Unit, until: float) -> None:
        """Load a unit; all others that want it wait meanwhile."""
        unit.state, unit.failure = "loading", None
        unit.attempts += 1
        parent, held = unit.parent, False
        try:
            if unit.num_bytes is None:
                unit.num_bytes = self._unlocked(unit, unit.measure)
            self._check_fits(unit)
            if not self._stand_in_line(unit, until):
                unit.state = "unloaded"  # its parent is gone meanwhile: from the start
                return
            if parent is not None:
                parent.leases += 1
                held = True
            below = None if parent is None else parent.value
            unit.value, measured = self._unlocked(unit, lambda: unit.load(below))
            unit.num_bytes = measured
            self._check_budget(unit)
            if self._closed:
                self._unlocked(unit, lambda: unit.unload(unit.value, below))
                raise UserError("the server is shutting down")
            unit.state, unit.num_loads = "ready", unit.num_loads + 1
            unit.last_used_s = self._clock()
        except BaseException as error:
            unit.state, unit.reserved, unit.value = "unloaded", False, None
            unit.failure = error if isinstance(error, UserError) else None
            raise
        finally:
            if held and parent is not None:
                parent.leases -= 1
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            self._changed.notify_all()

    def _unlocked(self, unit: Unit, work: Callable[[], Any]) -> Any:
        """Do what takes long without the lock; what it raises becomes a LoadFailed."""
        self._changed.release()
        try:
            return work()
        except MemoryError as error:
            raise LoadFailed(
                f"{unit.name} can't be loaded: the machine is out of memory"
            ) from error
        except UserError as error:
            raise LoadFailed(f"{unit.name} can't be loaded: {error}") from error
        except Exception as error:
            kind = type(error).__name__
            raise LoadFailed(f"{unit.name} can't be loaded: {kind}: {error}") from error
        finally:
            self._changed.acquire()

    def _check_fits(self, unit: Unit) -> None:
        if self.budget is None:
            return
        wanted = unit.num_bytes or 0
        if (parent := unit.parent) is not None:
            wanted += parent.num_bytes or 0
        pinned = sum(
            other.num_bytes or 0
            for other in self._units.values()
            if other.pinned and other.reserved and other not in (unit, unit.parent)
        )
        if wanted + pinned > self.budget:
            beside = f" beside the {shown_bytes(pinned)} of pinned models" if pinned else ""
            raise DoesNotFit(
                f"{unit.name} needs {shown_bytes(wanted)}, and the memory budget is "
                f"{shown_bytes(self.budget)}{beside}: raise --memory-budget, or lower its "
                "max_batch or max_positions"
            )

    def _check_budget(self, unit: Unit) -> None:
        """Where a thing took more than was told before, others go, or it does."""
        if self.budget is None:
            return
        while self.used_bytes > self.budget:
            victim = self._idle(unit)
            if victim is None:
                parent = unit.parent
                unit.unload(unit.value, None if parent is None else parent.value)
                raise DoesNotFit(
                    f"{unit.name} took {shown_bytes(unit.num_bytes or 0)}, more than there is "
                    "room for: raise --memory-budget"
                )
            self._evict(victim)

    def _stand_in_line(self, unit: Unit, until: float) -> bool:
        """Wait for room and set it aside. False: the unit's parent went away meanwhile."""
        wanted = unit.num_bytes or 0
        self._line.append(unit)
        since = self._clock()
        asked: list[Unit] = []
        try:
            while True:
                if self._closed:
                    raise UserError("the server is shutting down")
                if unit.parent is not None and unit.parent.state != "ready":
                    return False
                if self._line[0] is unit:
                    if self.budget is None or self.used_bytes + wanted <= self.budget:
                        unit.reserved = True
                        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
                        return True
                    if victim := self._idle(unit):
                        self._evict(victim)
                        continue
                    if not asked and self._clock() - since >= self._patience_s:
                        asked = self._ask_to_leave(unit)
                if not self._wait(until):
                    raise NoRoom(
                        f"there is no room for {unit.name} ({shown_bytes(wanted)}) while other "
                        "models are in use: try again later, or raise --memory-budget"
                    )
        finally:
            for other in asked:
                other.closing -= 1
            self._line.remove(unit)
            self._changed.notify_all()

    def _ask_to_leave(self, unit: Unit) -> list[Unit]:
        """Let enough of those in use take no new requests, those that began longest ago first."""
        room = (self.budget or 0) - self.used_bytes
        asked = []
        for other in sorted(self._units.values(), key=lambda each: each.last_used_s):
            if room >= (unit.num_bytes or 0):
                break
            if other.state == "ready" and self._may_go(other, unit):
                other.closing += 1
                asked.append(other)
                room += other.num_bytes or 0
        return asked

    def _may_go(self, other: Unit, unit: Unit) -> bool:
        return not other.pinned and other is not unit and other is not unit.parent

    def _idle(self, unit: Unit) -> Unit | None:
        """What was idle longest and may go; what stands on another goes before that."""
        idle = [
            other
            for other in self._units.values()
            if other.state == "ready"
            and not other.leases
            and self._may_go(other, unit)
            and not any(child.state != "unloaded" for child in self._children(other))
        ]
        return min(idle, key=lambda each: each.last_used_s, default=None)

    def _children(self, unit: Unit) -> list[Unit]:
        return [other for other in self._units.values() if other.parent is unit]

    def _evict(self, unit: Unit) -> None:
        """Give the memory of a unit back."""
        unit.state = "unloading"
        value, unit.value = unit.value, None
        below = None if unit.parent is None else unit.parent.value
        self._changed.release()
        try:
            unit.unload(value, below)
        finally:
            del value, below
            self._changed.acquire()
            unit.state, unit.reserved = "unloaded", False
            self.num_evictions += 1
            self._changed.notify_all()

    def _keep(self) -> None:
        """Unload what was idle for longer than it is to be kept."""
        with self._changed:
            while not self._closed:
                due = [self._leaves_s(unit) for unit in self._units.values()]
                now = self._clock()
                for unit in [u for u in self._units.values() if self._leaves_s(u) <= now]:
                    if unit.state == "ready" and not unit.leases:
                        self._evict(unit)
                self._changed.wait(max(0.05, min([*due, now + 60.0]) - now))

    def _leaves_s(self, unit: Unit) -> float:
        if unit.keep_alive_s is None or unit.pinned or unit.state != "ready" or unit.leases:
            return float("inf")
        if any(child.state != "unloaded" for child in self._children(unit)):
            return float("inf")
        return unit.last_used_s + unit.keep_alive_s
