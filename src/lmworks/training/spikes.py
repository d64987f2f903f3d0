"""Loss spikes: seen before they reach the weights, or undone when they have.

A step is suspicious when its loss is not finite or stands far above the line through the last
ones, in robust standard deviations (1.4826 x the median absolute deviation from the line), and half
as far again as the worst of them. Batches of another source, such as replayed text among answers,
are compared with their own. The loss of the batch before tells what is at fault. If that still is
what it was, the weights are sound and the batch is not: it is left out, and no gradient of it is
ever applied. If that has risen too, the weights are damaged: they go back to the last snapshot, and
the batches since then are left out. Several batches in a row that are left out with about the same
loss are a new level (another part of the data), and no spikes: the next one is taken.

Source: Chowdhery et al. 2022 (PaLM), arXiv 2204.02311, section 5.1: restart before the spike and
skip the batches around it.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from lmworks.core.config import option

_LEAST_RISE = 0.2  # of what was expected: very even losses have a spread of nearly nothing

_LEVEL_AFTER, _LEVEL_SPREAD = 3, 1.25  # batches in a row, and their highest loss to their lowest


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """When a step is taken for a spike, and what is kept to undo it."""

    threshold: float = option(10.0, help="robust standard deviations above the others; 0: never")
    window: int = option(32, help="steps that a loss is compared with")
    snapshot_every: int = option(200, help="steps between the states to go back to; 0: none")
    limit: int = option(10, help="spikes after which the run is given up")


def is_spike(value: float, recent: Sequence[float], config: SpikeConfig) -> bool:
    """Whether `value` stands out above `recent`; never before half a window is there."""
    if len(recent) < max(4, config.window // 2):
        return False
    if not math.isfinite(value):
        return True
    last = recent[-config.window :]
    line = statistics.linear_regression(range(len(last)), last)
    off = [y - (line.intercept + line.slope * x) for x, y in enumerate(last)]
    expected = line.intercept + line.slope * len(last)
    spread = 1.4826 * statistics.median(abs(x) for x in off)
    least = max(config.threshold * spread, _LEAST_RISE * abs(expected), 1.5 * max(off))
    return value - expected > least


def is_new_level(value: float, left_out: Sequence[float]) -> bool:
    """Whether `value` goes on with the losses of the batches left out just before, for good."""
    last = [*left_out[-_LEVEL_AFTER:], value]
    finite = all(math.isfinite(loss) for loss in last)
    return finite and len(last) > _LEVEL_AFTER and max(last) < _LEVEL_SPREAD * min(last)


def batch_number(step: int, skipped: Sequence[int]) -> int:
    """The number of the batch that `step` trains on, when `skipped` numbers are left out."""
    number = step
    for left_out in sorted(skipped):
        if left_out <= number:
            number += 1
    return number
