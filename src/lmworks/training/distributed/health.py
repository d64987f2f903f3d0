"""Which process is gone: every process says that it lives, and watches the others.

When a process dies, the others see a closed connection (gloo) or nothing at all (NCCL waits). So a
thread in each process counts up in the store that they met through, and reads the others' counts.
One that stands still, or that left a reason, is named in one line, the same in every process. Who
stands still longer than the limit while nobody complains, is taken for dead as well: the process
then ends itself, since its main thread waits inside the network.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

from lmworks.core.errors import Preempted, UserError

_BEAT_S = 0.5
_SETTLED_S = 4.0  # after an error: how long to look whose count stands still
_SILENT_S = float(os.environ.get("LMWORKS_SILENT_S", 60.0))  # without an error: the limit
_PREFIX = "lmworks"


class Lost(Preempted):
    """Another process is gone; a new start of all goes on, so schedulers should make one."""


@contextlib.contextmanager
def watching(what_to_do: str) -> Iterator[None]:
    """See `core.processes.watching`."""
    from lmworks.training.distributed.groups import join

    join()
    watch = _Watch(what_to_do)
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        watch.leave(str(error) or type(error).__name__)
        raise
    except Exception as error:
        line = watch.explain()
        if line is None:
            watch.leave(f"{type(error).__name__}: {error}")
            raise
        raise Lost(line) from error
    finally:
        watch.end()


class _Watch:
    def __init__(self, what_to_do: str) -> None:
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._what_to_do = what_to_do
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()
        self._seen = {r: (-1, time.monotonic()) for r in range(self._size)}
        self._lock, self._done = threading.Lock(), threading.Event()
        self._names = {self._rank: f"{socket.gethostname()}, pid {os.getpid()}"}
        self._unreachable = 0.0  # since when the store does not answer
        self._set(f"name/{self._rank}", self._names[self._rank])
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        count = 0
        while not self._done.wait(_BEAT_S):
            count += 1
            with self._lock:
                try:
                    self._set(f"beat/{self._rank}", str(count))
                    self._look()
                    self._unreachable = 0.0
                except Exception:  # the store's process is gone, or this one is ending
                    self._unreachable = self._unreachable or time.monotonic()
            silent = self._silent(_SILENT_S)
            if silent is not None and not self._done.is_set():
                # The main thread waits in the network and can't be woken.
                sys.stderr.write(f"lmworks: error: {self._line(silent, '')}\n")
                sys.stderr.flush()
                os._exit(Lost.exit_code)

    def _look(self) -> None:
        now = time.monotonic()
        for rank in range(self._size):
            count = int(self._get(f"beat/{rank}") or -1)
            if count != self._seen[rank][0]:
                self._seen[rank] = (count, now)
            if rank not in self._names and (name := self._get(f"name/{rank}")):
                self._names[rank] = name

    def _silent(self, limit_s: float) -> int | None:
        now = time.monotonic()
        if self._unreachable:
            return 0 if now - self._unreachable > limit_s and self._rank else None
        late = [r for r, (_, at) in self._seen.items() if r != self._rank and now - at > limit_s]
        return min(late, default=None)

    def explain(self) -> str | None:
        """After an error: who is gone, in words; None if everybody lives."""
        deadline = time.monotonic() + _SETTLED_S
        while time.monotonic() < deadline:
            time.sleep(_BEAT_S)
            with self._lock, contextlib.suppress(Exception):
                if known := self._get("gone"):
                    return known
                for rank in range(self._size):
                    if reason := self._get(f"left/{rank}"):
                        return self._agreed(self._line(rank, reason))
            silent = self._silent(4 * _BEAT_S)
            if silent is not None:
                return self._agreed(self._line(silent, ""))
        return None

    def _agreed(self, line: str) -> str:
        """What the first that found out says."""
        with contextlib.suppress(Exception):
            return str(self._store.compare_set(f"{_PREFIX}/gone", "", line).decode())
        return line

    def _line(self, rank: int, reason: str) -> str:
        where = self._names.get(rank, "unknown host")
        what = f"stopped ({reason})" if reason else "died or can't be reached"
        return f"process {rank} of {self._size} ({where}) {what}: {self._what_to_do}"

    def leave(self, reason: str) -> None:
        """Tell the others why this process ends."""
        with self._lock, contextlib.suppress(Exception):
            self._set(f"left/{self._rank}", " ".join(reason.split())[:300])

    def end(self) -> None:
        """Watch no longer, so that nobody asks a store whose process has ended."""
        self._done.set()
        self._thread.join(timeout=2.0)
        self._store = None

    def _set(self, key: str, value: str) -> None:
        self._store.set(f"{_PREFIX}/{key}", value)

    def _get(self, key: str) -> str:
        name = f"{_PREFIX}/{key}"
        return str(self._store.get(name).decode()) if self._store.check([name]) else ""
