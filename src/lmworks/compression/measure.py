"""How fast models generate here: interleaved pairs, medians, and the machine's own limit."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmworks.models.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Greedy decoding of one sequence with a KV cache."""

    tokens_per_s: float  # median of the rounds
    weight_bytes: int  # read once per token
    round_seconds: tuple[float, ...]  # rounds of the same index ran side by side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times as fast, and where the median lies with 95 % confidence."""

    ratio: float
    low: float
    high: float


def speedup(before: Speed, after: Speed) -> Speedup:
    """Compare two models of one `measure_speed`, round by round."""
    rounds = zip(before.round_seconds, after.round_seconds, strict=True)
    return speedup_of([a / b for a, b in rounds])


def speedup_of(ratios: Sequence[float]) -> Speedup:
    """What the ratios of neighbouring rounds, times as fast each, allow to say.

    The interval needs no assumption on the noise: fewer than k of n rounds lie on one side of the
    median as rarely as coins fall that way (the sign test). Under 6 rounds it is unbounded.
    """
    ratios = sorted(ratios)
    cut = _rounds_outside(len(ratios))
    return Speedup(
        ratio=statistics.median(ratios),
        low=ratios[cut - 1] if cut else 0.0,
        high=ratios[-cut] if cut else math.inf,
    )


def _rounds_outside(num_rounds: int) -> int:
    """The largest k for which P(fewer than k of n fair coins show heads) is at most 2.5 %."""
    ways = list(itertools.accumulate(math.comb(num_rounds, i) for i in range(num_rounds + 1)))
    return sum(total <= 0.025 * 2**num_rounds for total in ways)


def measure_speed(models: Sequence[Model], *, num_tokens: int = 48, rounds: int = 7) -> list[Speed]:
    """Decode the same number of tokens with each model in turn, several rounds, median of each.

    Taking turns shares the noise of the machine between the models.
    """
    seconds: list[list[float]] = [[] for _ in models]
    for model in models:
        decode(model, 4)  # kernels are compiled and pages mapped before the clock runs
    for _ in range(rounds):
        for index, model in enumerate(models):
            seconds[index].append(decode(model, num_tokens))
    return [
        Speed(
            tokens_per_s=round(num_tokens / statistics.median(times), 1),
            weight_bytes=weight_bytes(model),
            round_seconds=tuple(times),
        )
        for model, times in zip(models, seconds, strict=True)
    ]


def decode(model: Model, num_tokens: int) -> float:
    """Seconds to decode `num_tokens` greedily, one sequence, from an empty cache."""
    import torch

    from lmworks.models.cache import KVCache

    with torch.inference_mode():
        cache = KVCache(model.config, 1, num_tokens + 1)
        view = cache.view([0])
        token = torch.zeros(1, 1, dtype=torch.long)
        started = time.perf_counter()
        for _ in range(num_tokens):
            token = model(token, cache=view, last_only=True).argmax(-1)
        return time.perf_counter() - started


def weight_bytes(model: Model) -> int:
    """Memory of all weights, packed ones at their packed size, shared ones once."""
    from lmworks.models.size import held_bytes

    return held_bytes(model)
