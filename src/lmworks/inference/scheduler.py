"""Who runs: requests that wait, the slots of the cache, and the requests in them.

The next to get a slot is the one of the highest priority; among those, one of the client that was
served fewest tokens so far; among those, the one that came first. Whoever comes back after a pause
begins at the count of the least served of those that are there, so that nobody saves up a claim.

A request of a higher priority may take the place of one of a lower one, and any request that of one
whose reader has fallen behind. Who had to leave waits again, in its old turn, with its tokens kept.

Source of the counts: Sheng et al. 2024, Fairness in Serving Large Language Models, arXiv
2401.00588, algorithm 2 (virtual token counter).
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from lmworks.inference.base import FinishReason
from lmworks.inference.sampling import Sampler
from lmworks.inference.stopping import OutputText, StreamDecoder
from lmworks.inference.streams import Stream

_MOST_CLIENTS = 1024  # whose counts are kept though they have no request


class Grammar(Protocol):
    """What the tokens of one answer may be; it moves on with each."""

    finished: bool  # nothing can follow

    def allowed_mask(self) -> np.ndarray | None:
        """(V,) bool of the ids that may come next; None: any."""
        ...

    def accept(self, token_id: int) -> None:
        """Move on by a token."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """What turns the tokens into text as the grammar sees it."""
        ...


class Request:
    """One request's state. Only the engine's thread changes it once it is queued.

    Attributes:
        token_ids: the prompt, and what was generated so far.
        num_prompt: how many of them are the prompt's.
        num_computed: how many of them its slot of the cache holds.
        num_reused: of these, those that were there already when it got the slot.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        sampler: Sampler,
        output: OutputText,
        stream: Stream,
        priority: int = 0,
        client: str = "",
        adapter: str = "",
        grammar: Grammar | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.token_ids = list(prompt_ids)
        self.num_prompt = len(self.token_ids)
        self.max_tokens, self.sampler = max_tokens, sampler
        self.output, self.stream = output, stream
        self.priority, self.client, self.adapter = priority, client, adapter
        self.grammar = grammar
        self.slot = -1
        self.num_computed = self.num_reused = 0
        self.was_preempted = False
        self.arrival = -1
        self.submitted_s = time.monotonic()
        self.timeout_s = timeout_s
        self.last_token_s = 0.0
        self.proposer_state: Any = None  # for whoever proposes tokens

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that the model has not read yet; at least one."""
        return len(self.token_ids) - self.num_computed

    @property
    def decoding(self) -> bool:
        """Whether all but the last generated token was read."""
        return self.num_computed >= self.num_prompt and self.num_pending == 1

    @property
    def deadline_s(self) -> float:
        return float("inf") if self.timeout_s is None else self.submitted_s + self.timeout_s

    def finish_reason(self, eos_token_ids: frozenset[int]) -> FinishReason | None:
        """Why the last token was the last, if it was."""
        if self.output.stopped or self.token_ids[-1] in eos_token_ids:
            return "stop"
        if self.grammar is not None and self.grammar.finished:
            return "stop"
        return "length" if self.num_generated >= self.max_tokens else None


class Scheduler:
    """Requests and slots. Not locked: the engine's lock covers `waiting`, its thread the rest."""

    def __init__(self, num_slots: int) -> None:
        self.waiting: list[Request] = []
        self.active: list[Request] = []  # holders of a slot
        self._free_slots = list(range(num_slots))
        self._served: dict[str, float] = {}  # tokens by client
        self._present: Counter[str] = Counter()  # requests by client
        self._arrivals = itertools.count()

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def prefilling(self) -> list[Request]:
        """The requests that have more to read than their last token, in the order of their turn."""
        return sorted((r for r in self.active if not r.decoding), key=self._turn)

    @property
    def decoding(self) -> list[Request]:
        """The requests that take part in the next decode step, by slot."""
        ready = (r for r in self.active if r.decoding and not r.stream.is_full())
        return sorted(ready, key=lambda request: request.slot)

    def add(self, request: Request) -> None:
        """Queue a request."""
        request.arrival = next(self._arrivals)
        here = self._present
        if request.client not in here:
            least = min((self._served[client] for client in here), default=0.0)
            if len(self._served) > _MOST_CLIENTS or not here:
                self._served = {client: self._served[client] for client in here}
            self._served[request.client] = max(self._served.get(request.client, 0.0), least)
        here[request.client] += 1
        self.waiting.append(request)

    def charge(self, request: Request, num_tokens: int) -> None:
        """Count tokens that were read or made for a request's client."""
        self._served[request.client] = self._served.get(request.client, 0.0) + num_tokens

    def next_waiting(self) -> Request | None:
        """Whose turn it is to get a slot."""
        ready = (request for request in self.waiting if not request.stream.is_full())
        return min(ready, key=self._turn, default=None)

    def _turn(self, request: Request) -> tuple[float, float, int]:
        return -request.priority, self._served.get(request.client, 0.0), request.arrival

    def victim(self, of: Request | None = None) -> Request | None:
        """Who has to leave: first a request whose reader fell behind, then the one of the lowest
        priority, of these the one that came last.

        Args:
            of: who wants the place; only a request that may be displaced by it is named then.
        """
        behind = {request for request in self.active if request.stream.is_full()}
        displaced = [
            r for r in self.active if of is None or r in behind or r.priority < of.priority
        ]
        return max(displaced, key=lambda r: (r in behind, -r.priority, r.arrival), default=None)

    def take_slot(self, request: Request) -> None:
        """Give a waiting request the first free slot."""
        self.waiting.remove(request)
        request.slot = heapq.heappop(self._free_slots)
        self.active.append(request)

    def leave_slot(self, request: Request) -> None:
        """Let a request wait again; its place in the queue is that of its arrival."""
        self.active.remove(request)
        heapq.heappush(self._free_slots, request.slot)
        request.slot = -1
        self.waiting.append(request)

    def release(self, request: Request) -> None:
        """Take a request out, wherever it is; its slot is free then."""
        if request in self.active:
            self.active.remove(request)
            heapq.heappush(self._free_slots, request.slot)
            request.slot = -1
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            return
        self._present[request.client] -= 1
        if not self._present[request.client]:
            del self._present[request.client]
