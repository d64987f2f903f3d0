"""Results that take long to make, kept for the requests to come."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any


class Kept:
    """The last few of what takes long to make; each is made once, whoever asks."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: OrderedDict[Any, Any] = OrderedDict()
        self._making: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, make: Any) -> Any:
        """What `make()` gave for this key, now or before."""
        with self._lock:
            own = self._making.setdefault(key, threading.Lock())
        with own:
            if key not in self._found:
                made = make()
                with self._lock:
                    self._found[key] = made
                    while len(self._found) > self._most:
                        gone, _ = self._found.popitem(last=False)
                        self._making.pop(gone, None)
            with self._lock:
                found = self._found[key]
                self._found.move_to_end(key)
                return found
