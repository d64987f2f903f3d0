"""The engine: many requests through one model, batched anew at every step.

One background thread owns the model. Each turn it drops cancelled requests, gives slots to those
whose turn it is, reads chunks of prompts within a budget, and takes one decode step for all that
run (see `steps`). So a long prompt delays running streams by a few chunks at most, and a short
answer never waits for a long neighbour.

The cache is made of pages. Beginnings that were read before are found in a tree of prefixes and
not read again. When pages run out, a request leaves its slot and is taken up again later; its
stream notices nothing.

Each chunk of a prompt is read alone, and its bounds do not depend on company. On a CPU, models of
the usual kinds whose layers see all positions run in fused steps (`models.fused_step`): what a
request's tokens are computed from is then the same to the bit whoever shares the batch, however its
prompt was cut, and whether its beginning was reused. Elsewhere decoding is batched products, which
may round the last bit differently with the number of rows, and a reused beginning is what an
earlier request made of it; that can show only where two tokens tie to that bit.

Sources: Yu et al. 2022, Orca (OSDI 22), iteration-level scheduling; chunked prefill: Agrawal et al.
2023, arXiv 2308.16369; pages: Kwon et al. 2023, arXiv 2309.06180.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from lmworks.core.errors import UserError
from lmworks.inference.prefix_tree import PrefixTree
from lmworks.inference.sampling import Sampler, Sampling
from lmworks.inference.scheduler import Grammar, Request, Scheduler
from lmworks.inference.statistics import EngineStatistics
from lmworks.inference.steps import Adapters, Proposer, Steps
from lmworks.inference.stopping import OutputText
from lmworks.inference.streams import (
    DeadlineExceeded,
    EngineClosed,
    PromptTooLong,
    QueueFull,
    Stream,
)

# Beyond this a slot is larger than most machines like; ask for more with `max_positions`.
DEFAULT_MOST_POSITIONS = 8192
MAX_WAITING = 256
# Beginnings that nobody uses at the moment are kept up to this size.
DEFAULT_PREFIX_BYTES = 1 << 29
# The names under which the field's chat formats end a turn or a document.
_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "</s>")


def end_token_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that end an answer as far as the tokenizer knows."""
    ids = {tokenizer.special_tokens.get(name) for name in _END_TOKENS} | {tokenizer.eos_token_id}
    return frozenset(token_id for token_id in ids if token_id is not None)


class Engine:
    """Continuous batching over a model and its tokenizer.

    Args:
        model: a `Model`, or whatever else takes `input_ids (B, T), cache=, last_only=`.
        max_batch: requests that run at the same time.
        max_positions: prompt and answer together, in tokens; by default the model's context, at
            most 8192.
        eos_token_ids: ids that end an answer, besides those that the tokenizer names.
        max_waiting: requests that may wait before `submit` raises QueueFull.
        cache_tokens: positions that the cache holds, of all requests together; by default so many
            that each may fill its context. With fewer, requests may have to leave and come back.
        prefix_tokens: positions of known beginnings that are kept for later requests; by default
            what half a gigabyte holds. 0: none.
        turn_tokens: of prompts that are read before all that run get their next token; by default
            128. Fewer let answers flow more evenly beside long prompts.
        adapters: weights that single requests may ask for by name.
        cache_type: how keys and values are held: f32, f16 (half the memory) or q8_0 (a quarter);
            what is not f32 is slower, since steps run operation by operation.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_batch: int = 8,
        max_positions: int | None = None,
        eos_token_ids: Iterable[int] = (),
        max_waiting: int = MAX_WAITING,
        cache_tokens: int | None = None,
        prefix_tokens: int | None = None,
        turn_tokens: int | None = None,
        adapters: Adapters | None = None,
        cache_type: str = "f32",
    ) -> None:
        from lmworks.models.cache import PAGE, KVCache

        _at_least(1, max_batch=max_batch, turn_tokens=turn_tokens)
        _at_least(0, prefix_tokens=prefix_tokens)
        context = model.config.max_position_embeddings
        if max_positions is not None and not 2 <= max_positions <= context:
            raise UserError(
                f"max_positions must be from 2 to the model's {context}, not {max_positions}"
            )
        self.model, self.tokenizer = model, tokenizer
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.max_positions = max_positions or min(context, DEFAULT_MOST_POSITIONS)
        self.eos_token_ids = end_token_ids(tokenizer) | frozenset(eos_token_ids)
        self._silent_token_ids = self.eos_token_ids | set(tokenizer.special_tokens.values())
        # A model's vocabulary may be padded: ids that no token stands for are never sampled.
        self.vocab_size = min(model.config.vocab_size, tokenizer.vocab_size)
        self.statistics = EngineStatistics()
        num_pages = None
        if cache_tokens is not None:
            if cache_tokens < self.max_positions:
                raise UserError(
                    f"cache_tokens is {cache_tokens}, less than the {self.max_positions} of one "
                    "request: make it larger, or max_positions smaller"
                )
            num_pages = -(-cache_tokens // PAGE)
        self._cache = KVCache(
            model.config,
            max_batch,
            self.max_positions,
            device=_device(model),
            num_pages=num_pages,
            cache_type=cache_type,
        )
        self.prefixes: PrefixTree | None = None
        if self._cache.can_share and prefix_tokens != 0:
            most = DEFAULT_PREFIX_BYTES // self._cache.page_bytes
            if prefix_tokens is not None:
                most = -(-prefix_tokens // PAGE)
            self.prefixes = PrefixTree(self._cache.pool, most)
        self._scheduler = Scheduler(max_batch)
        self._wake = threading.Condition()
        self._closed = False
        self._steps = Steps(
            model,
            tokenizer,
            self._cache,
            self._scheduler,
            tree=self.prefixes,
            statistics=self.statistics,
            vocab_size=self.vocab_size,
            eos_token_ids=self.eos_token_ids,
            turn_tokens=turn_tokens,
            adapters=adapters,
            lock=self._wake,
        )
        self._thread = threading.Thread(target=self._run, name="lmworks-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a daemon thread inside a kernel can crash a dying interpreter

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return self.max_batch - self._scheduler.num_free_slots

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._scheduler.waiting)

    @property
    def cache_bytes(self) -> int:
        """The size of the cache with every slot full."""
        return self._cache.num_bytes

    @property
    def model_adapters(self) -> Adapters | None:
        """The adapters that requests may ask for by name; None: there are none."""
        return self._steps.adapters

    @model_adapters.setter
    def model_adapters(self, adapters: Adapters | None) -> None:
        self._steps.adapters = adapters

    @property
    def can_speculate(self) -> bool:
        """Whether what was read can be taken back, as guesses must be."""
        return self._cache.can_truncate

    @property
    def proposer(self) -> Proposer | None:
        """Who says what may come next, so that a step can give several tokens; None: nobody."""
        return self._steps.proposer

    @proposer.setter
    def proposer(self, proposer: Proposer | None) -> None:
        self._steps.proposer = proposer

    def submit(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling | None = None,
        *,
        priority: int = 0,
        client: str = "",
        adapter: str = "",
        grammar: Grammar | None = None,
        timeout_s: float | None = None,
    ) -> Stream:
        """Queue a prompt; the stream gives its tokens. Any thread may call this.

        Args:
            priority: higher goes first, and may take the place of a lower one.
            client: within a priority, the client that was served least goes first.
            adapter: one of the engine's `adapters`; "" is the model itself.
            grammar: what the answer's tokens may be.
            timeout_s: after which the stream raises DeadlineExceeded.
        Raises: PromptTooLong, QueueFull, EngineClosed, InvalidParameter; UserError for ids that
            are none or not in the vocabulary, an adapter that is not there, or no time at all.
        """
        sampling = sampling or Sampling()
        self._check(prompt_ids)
        if adapter and (self.model_adapters is None or adapter not in self.model_adapters):
            raise UserError(f"there is no adapter {adapter!r} on this model")
        if timeout_s is not None and not timeout_s > 0:
            raise UserError(f"timeout_s must be above 0, not {timeout_s}")
        stream = Stream(len(prompt_ids), self._on_cancel, self._on_room)
        room = self.max_positions - len(prompt_ids)
        request = Request(
            prompt_ids,
            max_tokens=min(sampling.max_tokens or room, room),
            sampler=Sampler(sampling, self.vocab_size, prompt_ids),
            output=OutputText(
                (self.tokenizer if grammar is None else grammar).stream_decoder(),
                sampling.stops,
                self._silent_token_ids,
            ),
            stream=stream,
            priority=priority,
            client=client,
            adapter=adapter,
            grammar=grammar,
            timeout_s=timeout_s,
        )
        with self._wake:
            if self._closed:
                raise EngineClosed
            if self.num_waiting >= self.max_waiting:
                raise QueueFull(self.num_waiting)
            self._scheduler.add(request)
            self._wake.notify()
        return stream

    def _check(self, prompt_ids: Sequence[int]) -> None:
        if len(prompt_ids) == 0:
            raise UserError("the prompt is empty: it needs at least one token")
        if len(prompt_ids) >= self.max_positions:
            raise PromptTooLong(len(prompt_ids), self.max_positions)
        size = self.model.config.vocab_size
        if wrong := [i for i in prompt_ids if not 0 <= i < size]:
            raise UserError(f"token id {wrong[0]} is not in the vocabulary of {size}")

    def close(self) -> None:
        """End all requests (their streams raise EngineClosed) and the thread. Twice is fine."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_cancel(self) -> None:
        with self._wake:
            for request in [r for r in self._scheduler.waiting if r.stream.cancelled]:
                self._steps.end(request, "cancelled")
            self._wake.notify()

    def _on_room(self) -> None:
        with self._wake:
            self._wake.notify()

    # --- from here on: the engine's thread ---

    def _run(self) -> None:
        import torch

        with torch.inference_mode():
            while True:
                try:
                    if not self._next_turn():
                        return
                    self._steps.prefill()
                    self._steps.decode()
                except Exception as error:  # of a proposer, say: a reader must not wait for ever
                    if not self._recover(error):
                        return

    def _recover(self, error: Exception) -> bool:
        """Fail all that are here and go on with those who come; False: not even that was possible,
        and the engine is closed."""
        with self._wake:
            requests = [*self._scheduler.active, *self._scheduler.waiting]
            try:
                for request in requests:
                    self._steps.fail(request, error)
            except Exception:
                self._closed = True
                for request in requests:
                    request.stream.put(EngineClosed())
            return not self._closed

    def _next_turn(self) -> bool:
        """Wait for work, drop what is over, give slots to others. False: the engine closes."""
        scheduler = self._scheduler
        with self._wake:
            self._note_state()
            while not self._closed and not self._has_work():
                self._wake.wait(self._until_deadline_s())
            for request in [*scheduler.active, *scheduler.waiting]:
                if self._closed:
                    request.stream.put(EngineClosed())
                elif request.deadline_s <= time.monotonic() and not request.stream.cancelled:
                    assert request.timeout_s is not None
                    self._steps.end(request, "cancelled")
                    request.stream.put(DeadlineExceeded(request.timeout_s))
                    continue
                if self._closed or request.stream.cancelled:
                    self._steps.end(request, "cancelled")
            if not self._closed:
                self._steps.admit()
            self._note_state()
            return not self._closed

    def _has_work(self) -> bool:
        now = time.monotonic()
        return any(
            not request.stream.is_full() or request.stream.cancelled or request.deadline_s <= now
            for request in (*self._scheduler.active, *self._scheduler.waiting)
        )

    def _until_deadline_s(self) -> float | None:
        """How long until the next request is out of time, if any will be."""
        requests = (*self._scheduler.active, *self._scheduler.waiting)
        first = min((request.deadline_s for request in requests), default=float("inf"))
        return None if first == float("inf") else max(0.0, first - time.monotonic())

    def _note_state(self) -> None:
        statistics, pool = self.statistics, self._cache.pool
        statistics.queue_length, statistics.running = self.num_waiting, self.num_running
        statistics.pages_in_use = pool.num_pages - pool.num_free
        statistics.prefix_pages = 0 if self.prefixes is None else len(self.prefixes)


def _at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"{name} must be at least {least}, not {value}")


def _device(model: Any) -> Any:
    from itertools import chain

    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), "cpu")
