"""What a `MemoryRoom` holds: units that are loaded or not, and leases on them."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from lmworks.serving.memory_room import MemoryRoom

State = Literal["unloaded", "loading", "ready", "unloading"]


class DoesNotFit(UserError):
    """More than the budget could ever give."""


class NoRoom(UserError):
    """All that is in memory stayed in use for as long as one may wait."""


class LoadFailed(UserError):
    """The thing could not be loaded; the next request tries again."""


@dataclasses.dataclass(eq=False)
class Unit:
    """One thing that is loaded or not.

    Attributes:
        measure: bytes that it will take, told before it is loaded.
        load: makes it; gets what its parent's `load` made, or None. Returns it and its bytes.
        unload: takes what `load` made, and gives its memory back.
        parent: what it stands on, which is loaded before it and unloaded after it.
        keep_alive_s: idle seconds after which it is unloaded; None: never for that.
    """

    name: str
    measure: Callable[[], int]
    load: Callable[[Any], tuple[Any, int]]
    unload: Callable[[Any, Any], None]
    parent: Unit | None = None
    pinned: bool = False
    keep_alive_s: float | None = None
    state: State = "unloaded"
    value: Any = None
    num_bytes: int | None = None  # measured, or told before loading; None: not yet asked
    leases: int = 0
    closing: int = 0  # above 0: no new leases, it is to go
    last_used_s: float = 0.0
    num_loads: int = 0
    attempts: int = 0
    failure: Exception | None = None  # of the last attempt
    reserved: bool = False  # its bytes count


class Lease:
    """The use of a unit; it stays loaded until `release`. Any thread may release, and twice."""

    def __init__(self, room: MemoryRoom, chain: Sequence[Unit]) -> None:
        self._room, self._chain = room, tuple(chain)
        self._lock = threading.Lock()
        self._held = True
        self.value: Any = chain[-1].value
        self.parent: Any = chain[0].value if len(chain) > 1 else None

    def release(self) -> None:
        """End it."""
        with self._lock:
            held, self._held = self._held, False
            self.value = self.parent = None
        if held:
            self._room.end_lease(self._chain)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
