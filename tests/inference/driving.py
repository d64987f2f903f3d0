"""What tests of the engine drive it with: prompts, a reference, a model that waits for tickets."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import torch

from lmworks.inference.sampling import Sampling
from lmworks.inference.streams import Stream

NO_END = {0: -100.0, 1: -100.0, 2: -100.0, 3: -100.0}


def greedy(max_tokens: int | None = 24, **settings: Any) -> Sampling:
    return Sampling(temperature=0, max_tokens=max_tokens, **settings)


def ids(stream: Stream) -> list[int]:
    return [event.token_id for event in stream]


def prompt(seed: int, length: int) -> list[int]:
    return [random.Random(seed * 1000 + i).randrange(4, 260) for i in range(length)]


def wait_until(condition: Any, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


def reference(model: Any, prompt_ids: list[int], count: int) -> list[int]:
    """Greedy without cache, batch or engine."""
    sequence = list(prompt_ids)
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([sequence]))[0, -1, :260]
        sequence.append(int(logits.argmax()))
        if sequence[-1] in (0, 2):
            break
    return sequence[len(prompt_ids) :]


class Gate:
    """Wraps the model: each step waits for a ticket, so a test can look between steps."""

    def __init__(self, model: Any) -> None:
        self._model, self.config = model, model.config
        self.tickets = threading.Semaphore(0)
        self.num_calls = 0
        self.shapes: list[tuple[int, int]] = []
        self.fail, self.scale = False, 1.0

    def parameters(self) -> Any:
        return self._model.parameters()

    def buffers(self) -> Any:
        return self._model.buffers()

    def __call__(self, input_ids: Any, **kwargs: Any) -> Any:
        self.num_calls += 1
        self.shapes.append(tuple(input_ids.shape))
        assert self.tickets.acquire(timeout=10)
        if self.fail:
            raise MemoryError("no memory for this step")
        return self._model(input_ids, **kwargs) * self.scale
