"""The engine: many requests through one model, batched anew at every step.

One background thread owns the model. Each turn it drops cancelled requests, lets one in, reads one
chunk of its prompt, and takes one decode step for all that run. So a long prompt delays running
streams by one chunk at most, and a short answer never waits for a long neighbour.

Each prompt is read alone in chunks of a fixed size: what it computes does not depend on company.
Decoding is batched, where a matrix product may round the last bit differently with the number of
rows; answers in company equal those alone wherever no two tokens tie to that bit.

Source: Yu et al. 2022, Orca (OSDI 22), iteration-level scheduling; chunked prefill: Agrawal et al.
2023, arXiv 2308.16369. Left out: paged memory and shared prefixes.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.inference.base import TokenLogprob
from lmworks.inference.sampling import Choice, Sampler, Sampling
from lmworks.inference.scheduler import Request, Scheduler
from lmworks.inference.statistics import EngineStatistics
from lmworks.inference.stopping import OutputText
from lmworks.inference.streams import (
    EngineClosed,
    GenerationError,
    PromptTooLong,
    QueueFull,
    Stream,
    TokenEvent,
)

# Beyond this a slot is larger than most machines like; ask for more with `max_positions`.
DEFAULT_MOST_POSITIONS = 8192
PREFILL_CHUNK = 128  # prompt tokens per turn
MAX_WAITING = 256
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
        max_batch: requests that run at the same time; each takes a slot of the cache.
        max_positions: prompt and answer together, in tokens; by default the model's context, at
            most 8192.
        eos_token_ids: ids that end an answer, besides those that the tokenizer names.
        max_waiting: requests that may wait before `submit` raises QueueFull.
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
    ) -> None:
        from lmworks.models.cache import KVCache

        if max_batch < 1:
            raise UserError(f"max_batch must be at least 1, not {max_batch}")
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
        self._device = _device(model)
        self._cache = KVCache(model.config, max_batch, self.max_positions, device=self._device)
        self._scheduler = Scheduler(max_batch)
        self._wake = threading.Condition()
        self._closed = False
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

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling | None = None) -> Stream:
        """Queue a prompt; the stream gives its tokens. Any thread may call this.

        Raises: PromptTooLong, QueueFull, EngineClosed, InvalidParameter; UserError for ids that
            are none or not in the vocabulary.
        """
        sampling = sampling or Sampling()
        self._check(prompt_ids)
        stream = Stream(len(prompt_ids), self._on_cancel)
        room = self.max_positions - len(prompt_ids)
        request = Request(
            prompt_ids,
            max_tokens=min(sampling.max_tokens or room, room),
            sampler=Sampler(sampling, self.vocab_size),
            output=OutputText(
                self.tokenizer.stream_decoder(), sampling.stops, self._silent_token_ids
            ),
            stream=stream,
        )
        with self._wake:
            if self._closed:
                raise EngineClosed
            if self.num_waiting >= self.max_waiting:
                raise QueueFull(self.num_waiting)
            self._scheduler.waiting.append(request)
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

    # --- from here on: the engine's thread ---

    def _on_cancel(self) -> None:
        with self._wake:
            for request in [r for r in self._scheduler.waiting if r.stream.cancelled]:
                self._end(request, "cancelled")
            self._wake.notify()

    def _run(self) -> None:
        import torch

        with torch.inference_mode():
            while self._next_turn():
                self._prefill()
                self._decode()

    def _next_turn(self) -> bool:
        """Wait for work, drop what was cancelled, let one request in. False: the engine closes."""
        scheduler = self._scheduler
        with self._wake:
            self._wake.wait_for(lambda: self._closed or scheduler.waiting or scheduler.active)
            for request in [*scheduler.active, *scheduler.waiting]:
                if self._closed:
                    request.stream.put(EngineClosed())
                if self._closed or request.stream.cancelled:
                    self._end(request, "cancelled")
            scheduler.admit()
            return not self._closed

    def _prefill(self) -> None:
        request = self._scheduler.prefilling
        if request is None:
            return
        start = request.num_prefilled
        self._cache.expect(request.slot, len(request.prompt_ids))
        chunk = request.prompt_ids[start : start + PREFILL_CHUNK]
        logits = self._forward([request], [chunk])
        if logits is None:
            return
        request.num_prefilled += len(chunk)
        if request.prefilled:
            self.statistics.prompt_tokens += len(request.prompt_ids)
            self._sample(request, logits[0])

    def _decode(self) -> None:
        requests = self._scheduler.decoding
        if not requests:
            return
        logits = self._forward(requests, [[request.last_token_id] for request in requests])
        if logits is not None:
            for request, row in zip(requests, logits, strict=True):
                self._sample(request, row)

    def _forward(self, requests: list[Request], ids: Sequence[Sequence[int]]) -> np.ndarray | None:
        """Logits (B, V) after the last of `ids` (B, T); None if the step failed, and with it its
        requests."""
        import torch

        try:
            view = self._cache.view([request.slot for request in requests])
            input_ids = torch.tensor(ids, dtype=torch.long, device=self._device)
            logits = self.model(input_ids, cache=view, last_only=True)[:, -1, : self.vocab_size]
            array: np.ndarray = logits.float().cpu().numpy()
            return array
        except Exception as error:  # whatever a model raises must not take the engine along
            for request in requests:
                self._fail(request, error)
            return None

    def _sample(self, request: Request, logits: np.ndarray) -> None:
        try:
            choice = request.sampler.pick(logits)
            self._take(request, choice)
        except Exception as error:  # one row's trouble is that request's alone
            self._fail(request, error)

    def _take(self, request: Request, choice: Choice) -> None:
        request.last_token_id = choice.token_id
        request.num_generated += 1
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
            logprob=self._logprob(choice),
        )
        if reason:
            self._end(request, reason)  # before the event: who reads the last sees a free slot
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

    def _fail(self, request: Request, error: Exception) -> None:
        failure = GenerationError(f"generation failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        self._end(request, "error")
        request.stream.put(failure)

    def _end(self, request: Request, how: str) -> None:
        if request.slot >= 0:
            self._cache.free(request.slot)
        self._scheduler.release(request)
        self.statistics.finished[how] += 1


def _device(model: Any) -> Any:
    from itertools import chain

    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), "cpu")
