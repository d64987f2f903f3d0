"""How long each kind of layer takes on this machine, and what a whole pattern will take.

A model's time is taken to be the sum of its layers' times and of what is outside of them
(embedding, last norm, head). Layers are measured one by one, taking turns, and the median counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from lmworks.models.cache import KVCache
from lmworks.models.config import ModelConfig
from lmworks.models.config.patterns import Sizes, decoder_config
from lmworks.models.model import Model

K = TypeVar("K", bound=Hashable)
TASKS = ("prefill", "decode", "train")
_ROUNDS = 7


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Milliseconds for one sequence of the context (prefill, train) or one token (decode).

    `outside` is what a model takes beside its layers.
    """

    task: str
    outside: float
    by_word: Mapping[str, float]

    def predict(self, words: Sequence[str]) -> float:
        """Milliseconds of a model with these layers."""
        return self.outside + sum(self.by_word[word] for word in words)


def measure_layers(words: Sequence[str], task: str, *, vocab_size: int, sizes: Sizes) -> LayerTimes:
    """Measure models of one and of three layers of each word: the difference is two layers."""
    runs: dict[tuple[str, int], Callable[[], None]] = {
        (word, depth): runner(
            decoder_config(word, depth=depth, vocab_size=vocab_size, sizes=sizes), task
        )
        for word in words
        for depth in (1, 3)
    }
    times = median_times(runs)
    by_word = {word: max(0.0, (times[word, 3] - times[word, 1]) / 2) for word in words}
    outside = statistics.median(times[word, 1] - by_word[word] for word in words)
    return LayerTimes(task=task, outside=max(0.0, outside), by_word=by_word)


def median_times(runs: Mapping[K, Callable[[], None]], rounds: int = _ROUNDS) -> dict[K, float]:
    """Milliseconds of each, taking turns; one round before is not counted."""
    times: dict[K, list[float]] = {key: [] for key in runs}
    for number in range(rounds + 1):
        for key, run in runs.items():
            started = time.perf_counter()
            run()
            if number:
                times[key].append(1000 * (time.perf_counter() - started))
    return {key: statistics.median(found) for key, found in times.items()}


def runner(config: ModelConfig, task: str) -> Callable[[], None]:
    """What is timed: one call does the task once, with a fresh model of this config."""
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    length = config.max_position_embeddings
    ids = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(1))
    if task == "train":
        return lambda: _train(model, ids)
    if task == "prefill":
        return lambda: _prefill(model, ids)
    return _decoder(model, ids)


def _train(model: Model, ids: torch.Tensor) -> None:
    logits = model(ids[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)


@torch.inference_mode()
def _prefill(model: Model, ids: torch.Tensor) -> None:
    model(ids, last_only=True)


def _decoder(model: Model, ids: torch.Tensor) -> Callable[[], None]:
    """One token with half of the context behind it; the cache is wound back each time."""
    half = ids.shape[1] // 2
    cache = KVCache(model.config, 1, ids.shape[1])
    view = cache.view([0])

    @torch.inference_mode()
    def run() -> None:
        if cache.lengths[0] == 0 or cache.lengths[0] + 1 >= cache.max_positions:
            cache.free(0)
            model(ids[:, :half], cache=view, last_only=True)
        model(ids[:, half : half + 1], cache=view, last_only=True)

    run()
    return run
