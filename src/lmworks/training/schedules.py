"""Learning-rate schedules: the factor on the peak rate at a step, in [0, 1].

Every schedule warms up linearly, then differs in how it comes down. Sources: linear and cosine
are standard; warmup-stable-decay is Hu et al. 2024 (MiniCPM, arXiv 2404.06395, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def linear(progress: float) -> float:
    """Straight down to zero."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Half a cosine down to a tenth of the peak."""
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))


def warmup_stable_decay(progress: float, decay_share: float = 0.7) -> float:
    """Hold the peak, then straight down to zero over the last `decay_share` of the run."""
    return min(1.0, (1.0 - progress) / decay_share)


SCHEDULES = {
    "linear": "lmworks.training.schedules:linear",
    "cosine": "lmworks.training.schedules:cosine",
    "wsd": "lmworks.training.schedules:warmup_stable_decay",
}


def rate(schedule: Schedule, step: int, *, num_steps: int, warmup_steps: int) -> float:
    """The factor for `step` (counted from 0) of `num_steps`."""
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    return warmup * max(0.0, schedule(step / max(1, num_steps)))
