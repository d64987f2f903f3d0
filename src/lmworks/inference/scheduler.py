"""Who runs: a queue of waiting requests, the slots of the cache, and the requests in them.

First come, first served. One request at a time is prefilled; with its last prompt token it joins
those that decode. Left out: priorities, and preemption (a slot has room for its whole context,
so a request that was let in can always finish).
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence

from lmworks.inference.base import FinishReason
from lmworks.inference.sampling import Sampler
from lmworks.inference.stopping import OutputText
from lmworks.inference.streams import Stream


class Request:
    """One request's state. Only the engine's thread changes it once it is queued."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        sampler: Sampler,
        output: OutputText,
        stream: Stream,
    ) -> None:
        self.prompt_ids = tuple(prompt_ids)
        self.max_tokens, self.sampler = max_tokens, sampler
        self.output, self.stream = output, stream
        self.slot = -1
        self.num_prefilled = 0
        self.num_generated = 0
        self.last_token_id = -1
        self.submitted_s = time.monotonic()
        self.last_token_s = 0.0

    @property
    def prefilled(self) -> bool:
        return self.num_prefilled == len(self.prompt_ids)

    def finish_reason(self, eos_token_ids: frozenset[int]) -> FinishReason | None:
        """Why the last token was the last, if it was."""
        if self.output.stopped or self.last_token_id in eos_token_ids:
            return "stop"
        return "length" if self.num_generated >= self.max_tokens else None


class Scheduler:
    """Requests and slots. Not locked: the engine's lock covers `waiting`, its thread the rest."""

    def __init__(self, num_slots: int) -> None:
        self.waiting: deque[Request] = deque()
        self.active: list[Request] = []  # holders of a slot, in order of arrival
        self._free_slots = list(range(num_slots))

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def prefilling(self) -> Request | None:
        """The one request whose prompt is being read: the first of those that are not through."""
        return next((request for request in self.active if not request.prefilled), None)

    @property
    def decoding(self) -> list[Request]:
        """The requests that take part in the next decode step, by slot: neighbouring slots are
        read from the cache without a copy."""
        ready = (request for request in self.active if request.prefilled)
        return sorted(ready, key=lambda request: request.slot)

    def admit(self) -> None:
        """Give the next in the queue a slot, if one is free."""
        if self.waiting and self._free_slots:
            request = self.waiting.popleft()
            request.slot = heapq.heappop(self._free_slots)
            self.active.append(request)

    def release(self, request: Request) -> None:
        """Take a request out, wherever it is; its slot is free then."""
        if request in self.active:
            self.active.remove(request)
            heapq.heappush(self._free_slots, request.slot)
        elif request in self.waiting:
            self.waiting.remove(request)
