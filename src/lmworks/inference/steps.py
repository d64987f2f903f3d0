"""What the engine's thread does in a turn: read chunks of prompts, then a token for all that run.

A chunk of a prompt is read alone, and its bounds are multiples of a fixed size whatever else goes
on. A decode step takes all requests that run, those of one adapter together. Where a proposer says
what may come next, a step reads those tokens too, and a request keeps as many as it would have
drawn itself: the same tokens as one by one, in fewer steps.

When pages run out, first beginnings that nobody uses go from the tree, then a request leaves its
slot. What it had computed goes into the tree, so that it can often be taken up again as it was.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lmworks.inference.base import TokenLogprob
from lmworks.inference.prefix_tree import PrefixTree
from lmworks.inference.sampling import Choice
from lmworks.inference.scheduler import Request, Scheduler
from lmworks.inference.statistics import EngineStatistics
from lmworks.inference.streams import GenerationError, TokenEvent
from lmworks.models.pages import PAGE, OutOfPages

if TYPE_CHECKING:
    from lmworks.models.cache import KVCache

_LOG = logging.getLogger("lmworks.inference")
PREFILL_CHUNK = 128  # prompt tokens of one forward, and of a turn


class Adapters(Protocol):
    """Weights that change a model for some requests, by name."""

    def __contains__(self, name: str) -> bool: ...

    def groups(self, names: Sequence[str]) -> Sequence[Sequence[int]]:
        """Which rows, by the names of their adapters, can be one forward each."""
        ...

    def active(self, names: Sequence[str]) -> contextlib.AbstractContextManager[Any]:
        """The model to call with rows of these adapters, one group; "" is the model itself."""
        ...


class Proposer(Protocol):
    """Says cheaply what may come next; see `inference.speculative`."""

    @property
    def num_bytes(self) -> int:
        """What it keeps in memory."""
        ...

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> Sequence[Sequence[int]]:
        """For each request at most so many token ids that may follow its `token_ids`.

        Where they were drawn, their `probabilities` tell from what: (V,) for each.
        """
        ...

    def stepped(self, num_requests: int, num_new: int, seconds: float) -> None:
        """How long a forward over so many tokens of each request took."""
        ...

    def verified(self, request: Request, num_proposed: int, num_accepted: int) -> None:
        """How a proposal went."""
        ...

    def ended(self, request: Request) -> None:
        """The request holds no slot any more."""
        ...


class Steps:
    """Model, cache and requests, as the engine's thread moves them on. Not for other threads.

    Args:
        turn_tokens: of prompts that are read in a turn, before all that run get a token, and of
            one chunk at most.
        lock: covers `scheduler.waiting`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        cache: KVCache,
        scheduler: Scheduler,
        *,
        tree: PrefixTree | None,
        statistics: EngineStatistics,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        turn_tokens: int | None,
        adapters: Adapters | None,
        lock: threading.Condition,
    ) -> None:
        self.model, self.tokenizer, self.cache, self.scheduler = model, tokenizer, cache, scheduler
        self.tree, self.statistics, self.vocab_size = tree, statistics, vocab_size
        self.eos_token_ids, self.turn_tokens = eos_token_ids, turn_tokens
        self.adapters = adapters
        self.proposer: Proposer | None = None
        self._lock = lock
        cache.make_room = self._make_room
        statistics.num_pages = cache.pool.num_pages

    # --- slots and pages ---

    def admit(self) -> None:
        """Give slots to those whose turn it is, as long as there is room for them."""
        scheduler = self.scheduler
        while (request := scheduler.next_waiting()) is not None:
            if not self._take_slot(request):
                victim = scheduler.victim(request)
                if victim is None:
                    return
                self.preempt(victim)

    def _take_slot(self, request: Request) -> bool:
        """A slot with the pages of what is known of the beginning, and of all that is there."""
        scheduler, cache = self.scheduler, self.cache
        if not scheduler.num_free_slots:
            return False
        scheduler.take_slot(request)
        self._reuse(request)
        # Room for the next page of all others too, else somebody would have to leave again soon.
        others = len(scheduler.active) - 1
        missing = -(-len(request.token_ids) // PAGE) - len(cache.tables[request.slot]) + others
        room = cache.pool.num_free + (0 if self.tree is None else self.tree.num_idle)
        if cache.pool.num_pages and missing > room and others:
            cache.free(request.slot)
            scheduler.leave_slot(request)
            request.num_computed = request.num_reused = 0
            return False
        cache.reserve([request.slot], request.num_pending)
        if not request.was_preempted:
            self.statistics.queue_wait_s.observe(time.monotonic() - request.submitted_s)
        return True

    def _reuse(self, request: Request) -> None:
        """Let an empty slot begin with what the tree knows of the request's tokens."""
        self._expect(request)
        if self.tree is not None:
            regime = self.cache.regimes[request.slot]
            pages = self.tree.match(request.token_ids, request.adapter, regime)
            self.cache.share(request.slot, pages)
            request.num_computed = request.num_reused = len(pages) * PAGE

    def _expect(self, request: Request) -> None:
        """Tell the cache by which length the request is read.

        That of all there is so far, so that what a request says can be read anew as if it had come
        at once; where every length has its own frequencies, that of the prompt, as the first time.
        """
        whole = request.num_prompt if self.cache.all_regimes.grows else len(request.token_ids)
        self.cache.expect(request.slot, whole)

    def _make_room(self, count: int) -> None:
        if self.tree is not None and self.tree.num_idle >= count:
            self.tree.evict(count)

    def preempt(self, request: Request) -> None:
        """Take the slot from a request, which waits again."""
        self._keep(request)
        self.cache.free(request.slot)
        with self._lock:
            self.scheduler.leave_slot(request)
        request.num_computed = request.num_reused = 0
        request.was_preempted = True
        self.statistics.preemptions += 1
        if self.proposer is not None:
            self.proposer.ended(request)

    def _keep(self, request: Request) -> None:
        """Put what a request computed into the tree."""
        if self.tree is not None and request.num_computed:
            cache = self.cache
            pages = cache.tables[request.slot][: request.num_computed // PAGE]
            known, regime = request.token_ids[: request.num_computed], cache.regimes[request.slot]
            self.tree.insert(known, pages, request.adapter, regime)

    def _with_pages(self, requests: list[Request], num_new: int) -> list[Request]:
        """Those of `requests` that can go `num_new` positions on, after others had to leave."""
        while requests:
            try:
                self.cache.reserve([request.slot for request in requests], num_new)
                return requests
            except OutOfPages:
                victim = self.scheduler.victim()
                assert victim is not None  # `requests` are active
                self.preempt(victim)
                requests = [request for request in requests if request is not victim]
        return requests

    def end(self, request: Request, how: str) -> None:
        """Take a request out, wherever it is."""
        if request.slot >= 0:
            if how != "error":
                self._keep(request)
            self.cache.free(request.slot)
            if self.tree is not None:
                self.tree.trim()
            if self.proposer is not None:
                self.proposer.ended(request)
        with self._lock:
            self.scheduler.release(request)
        self.statistics.finished[how] += 1

    def fail(self, request: Request, error: Exception) -> None:
        """End a request with an error that its stream raises."""
        failure = GenerationError(f"generation failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        self.end(request, "error")
        request.stream.put(failure)

    # --- a turn ---

    def prefill(self) -> None:
        """Read chunks of prompts, as many as a turn may take; at least one."""
        budget = left = self._chunk
        for request in self.scheduler.prefilling:
            while request.slot >= 0 and not request.decoding:
                if request.num_computed == request.num_reused:
                    self._begin(request)
                size = self._chunk_size(request)
                if size > left and left < budget:
                    return
                left -= size
                if not self._read_chunk(request, size):
                    break

    def _begin(self, request: Request) -> None:
        """Look once more: what the tree did not know when the slot was given it may know now."""
        if self.tree is not None:
            regime = self.cache.regimes[request.slot]
            pages = self.tree.match(request.token_ids, request.adapter, regime)
            if len(pages) * PAGE > request.num_reused:
                self.cache.free(request.slot)
                self._reuse(request)

    def _chunk_size(self, request: Request) -> int:
        start = request.num_computed
        if self.cache.all_regimes.grows and start >= request.num_prompt:
            return 1  # as it was computed the first time
        return min((start // self._chunk + 1) * self._chunk - start, request.num_pending)

    @property
    def _chunk(self) -> int:
        return self.turn_tokens or PREFILL_CHUNK

    def _read_chunk(self, request: Request, size: int) -> bool:
        """False: the request failed, or had to leave."""
        if not self._with_pages([request], size):
            return False
        start = request.num_computed
        self._expect(request)
        logits = self.forward([request], [request.token_ids[start : start + size]])
        if logits is None:
            return False
        self.scheduler.charge(request, size)
        if request.was_preempted:
            self.statistics.recomputed_tokens += size
        if size < request.num_pending:
            request.num_computed += size
            return True
        if request.num_generated == 0:
            request.stream.cached_tokens = request.num_reused
            self.statistics.prompt_tokens += request.num_prompt
            self.statistics.cached_prompt_tokens += request.num_reused
        request.num_computed += size - 1  # its last one as in a decode step
        self._sample(request, logits[0], ())
        return request.slot >= 0

    def decode(self) -> None:
        """A step for all requests that run."""
        if self.cache.all_regimes.bounds:
            for request in self.scheduler.decoding:
                if self.cache.regime_after(request.slot, 1) != self.cache.regimes[request.slot]:
                    self._read_anew(request)
        for group in self._groups():
            requests = [r for r in group if r.slot >= 0]  # others may have had to leave for one
            proposals = self._proposals(requests)
            num_new = 1 + max(map(len, proposals.values()), default=0)
            requests = self._with_pages(requests, num_new)
            if not requests:
                continue
            rows = []
            for request in requests:
                row = [request.token_ids[-1], *proposals.get(request, ())]
                rows.append(row + row[-1:] * (num_new - len(row)))  # what is too much goes again
            began = time.perf_counter()
            logits = self.forward(requests, rows, all_positions=num_new > 1)
            if logits is None:
                continue
            if self.proposer is not None:
                self.proposer.stepped(len(requests), num_new, time.perf_counter() - began)
            self.statistics.batch_size.observe(len(requests))
            for request, scores in zip(requests, logits, strict=True):
                self._sample(request, scores, proposals.get(request, ()))

    def _read_anew(self, request: Request) -> None:
        """Let a request that outgrew its regime be read from its beginning in the next one.

        What deeper layers made of its tokens goes by the frequencies it began with. It is made anew
        in the turns that follow, as for a prompt of that length, while others go on.
        """
        self._keep(request)
        self.cache.free(request.slot)
        request.num_computed = request.num_reused = 0
        request.was_preempted = True
        self._reuse(request)

    def _groups(self) -> list[list[Request]]:
        """The requests that run, by what can be one forward."""
        regimes, by_regime = self.cache.regimes, dict[int, list[Request]]()
        for request in self.scheduler.decoding:
            by_regime.setdefault(regimes[request.slot], []).append(request)
        return [group for running in by_regime.values() for group in self._by_adapter(running)]

    def _by_adapter(self, running: list[Request]) -> list[list[Request]]:
        if self.adapters is None or not any(request.adapter for request in running):
            return [running]
        rows = self.adapters.groups([request.adapter for request in running])
        return [[running[row] for row in group] for group in rows]

    def _proposals(self, requests: list[Request]) -> dict[Request, Sequence[int]]:
        """Token ids that may come next, for as many rows as can be taken back."""
        if self.proposer is None or not requests or not self.cache.can_truncate:
            return {}
        cache = self.cache
        longest = cache.all_regimes.longest(cache.regimes[requests[0].slot])
        most_held = int(min(cache.max_positions, longest))
        room = most_held - max(len(request.token_ids) for request in requests)
        most = [min(room, r.max_tokens - r.num_generated - 1) for r in requests]
        try:
            proposed = self.proposer.propose(requests, most)
        except Exception:  # answers do without it
            _LOG.exception("speculation failed, and is off from now on")
            self.proposer = None
            return {}
        return {
            request: ids if len(ids) <= count else ids[:count]
            for request, ids, count in zip(requests, proposed, most, strict=True)
            if len(ids) and count > 0
        }

    def forward(
        self,
        requests: Sequence[Request],
        ids: Sequence[Sequence[int]],
        all_positions: bool = False,
    ) -> np.ndarray | None:
        """Logits (B, 1, V) after the last of `ids` (B, T), or (B, T, V) after each.

        None if the step failed, and with it its requests.
        """
        import torch

        try:
            view = self.cache.view([request.slot for request in requests])
            input_ids = torch.tensor(ids, dtype=torch.long, device=self.cache.device)
            with self._adapted([request.adapter for request in requests]) as model:
                logits = model(input_ids, cache=view, last_only=not all_positions)
            array: np.ndarray = logits[..., : self.vocab_size].float().cpu().numpy()
            return array
        except Exception as error:  # whatever a model raises must not take the engine along
            for request in requests:
                self.fail(request, error)
            return None

    def _adapted(self, names: Sequence[str]) -> contextlib.AbstractContextManager[Any]:
        if self.adapters is None:
            return contextlib.nullcontext(self.model)
        return self.adapters.active(names)

    # --- tokens ---

    def _sample(self, request: Request, logits: np.ndarray, proposal: Sequence[int]) -> None:
        """Take tokens as long as they are those of the proposal, and one more.

        Args: `logits` (T, V), after the last known token and after each that was proposed.
        """
        start = request.num_computed
        request.stream.proposed_tokens += len(proposal)
        drawn_from = (*getattr(proposal, "probabilities", ()), None)
        try:
            for place, (scores, proposed) in enumerate(zip(logits, (*proposal, -1))):
                chances = drawn_from[min(place, len(drawn_from) - 1)]
                choice = self._choose(request, scores, proposed, chances)
                request.stream.accepted_tokens += choice.token_id == proposed
                request.num_computed += 1
                if request.num_generated == 0:
                    self._keep(request)
                self._take(request, choice)
                if request.slot < 0 or choice.token_id != proposed:
                    break
            if request.slot >= 0 and len(logits) > 1:
                self.cache.truncate(request.slot, request.num_computed)
        except Exception as error:  # one row's trouble is that request's alone
            self.fail(request, error)
        if proposal:
            accepted = max(0, request.num_computed - start - 1)
            self.statistics.proposed_tokens += len(proposal)
            self.statistics.accepted_tokens += accepted
            if self.proposer is not None:
                self.proposer.verified(request, len(proposal), accepted)

    def _choose(
        self, request: Request, logits: np.ndarray, proposed: int, chances: np.ndarray | None
    ) -> Choice:
        """The next token; `proposed` one where that does not change what is likely."""
        grammar = request.grammar
        mask = None if grammar is None else grammar.allowed_mask()
        if chances is None:
            choice = request.sampler.pick(logits, mask)
        else:
            choice = request.sampler.pick_proposed(logits, proposed, chances, mask)
        if grammar is not None:
            grammar.accept(choice.token_id)
        return choice

    def _take(self, request: Request, choice: Choice) -> None:
        request.token_ids.append(choice.token_id)
        self.scheduler.charge(request, 1)
        self._count_token(request)
        text = request.output.push(choice.token_id)
        reason = request.finish_reason(self.eos_token_ids)
        if reason:
            text += request.output.finish()
            reason = request.finish_reason(self.eos_token_ids)  # the rest may hold a stop string
        event = TokenEvent(
            token_id=choice.token_id,
            text=text,
            finish_reason=reason,
            stop_string=request.output.stop_string,
            logprob=self._logprob(choice),
        )
        if reason:
            self.end(request, reason)  # before the event: who reads the last sees a free slot
        request.stream.put(event)

    def _count_token(self, request: Request) -> None:
        now = time.monotonic()
        if request.num_generated == 1:
            self.statistics.ttft_s.observe(now - request.submitted_s)
        else:
            self.statistics.itl_s.observe(now - request.last_token_s)
        request.last_token_s = now
        self.statistics.completion_tokens += 1

    def _logprob(self, choice: Choice) -> TokenLogprob | None:
        if choice.logprob is None:
            return None
        decode = self.tokenizer.decode
        return TokenLogprob(
            token=decode([choice.token_id]),
            token_id=choice.token_id,
            logprob=choice.logprob,
            top=tuple((decode([i]), logprob) for i, logprob in choice.top),
        )
