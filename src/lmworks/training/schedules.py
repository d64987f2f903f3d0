"""Learning-rate schedules: the factor on the peak rate at a step, in [0, 1].

All rise in a straight line first; they differ in how they come down. Steps are counted so that none
is taken at a rate of nothing, neither the first nor the last: step s of N (from 0) has the factor
that transformers' schedule of the same name gives step s + 1 of N + 1.

Sources: linear and cosine are standard (Loshchilov & Hutter 2017, arXiv 1608.03983); inverse square
root is Vaswani et al. 2017, section 5.3; warmup-stable-decay is Hu et al. 2024 (MiniCPM, arXiv
2404.06395, section 4); the shapes of a cooldown are those that Hägele et al. 2024 (arXiv
2405.18392, section 4) compare, "1-sqrt" being the one they found best.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from lmworks.core.config import option
from lmworks.core.errors import UserError, unknown_name

if TYPE_CHECKING:
    from lmworks.training.trainer_config import LoopConfig

SCHEDULES = {
    "wsd": "hold the peak, then come down over the last part of the run",
    "cosine": "half a cosine down over the whole run",
    "linear": "straight down over the whole run",
    "constant": "hold the peak to the end",
    "inverse_sqrt": "as one over the root of the step",
}
_WHOLE_RUN = ("cosine", "linear")
_SHARES = {"wsd": 0.7}
_MIN_RATES = {"cosine": 0.1}
_MOST_WARMUP = 5  # warmup takes at most this part of a run

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "1-sqrt": lambda done: 1.0 - math.sqrt(done),
    "square": lambda done: 1.0 - done * done,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CooldownConfig:
    """How the rate comes down at the end."""

    share: float | None = option(
        None, help="part of the run that it takes; none: 0.7 with wsd, else no cooldown"
    )
    min_rate: float | None = option(
        None, help="what is left of the peak at the end; none: 0.1 with cosine, else 0"
    )
    shape: Literal["linear", "cosine", "1-sqrt", "square"] = option(
        "linear",
        help="of the way down: linear, cosine, 1-sqrt (steep first) or square (flat first)",
    )


def build_schedule(config: LoopConfig, num_steps: int) -> Callable[[int], float]:
    """The factor on the peak rate for a step, counted from 0, of `num_steps`.

    Raises: UserError for an unknown name, the nearest one named; for a share or a rate outside
        [0, 1]; for a cooldown of a schedule that comes down all the time.
    """
    name, cooldown = config.schedule, config.cooldown
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, SCHEDULES)
    for field in ("share", "min_rate"):
        value = getattr(cooldown, field)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"loop.cooldown.{field} = {value}: a number from 0 to 1")
    if name in _WHOLE_RUN and cooldown.share is not None:
        raise UserError(
            f"schedule {name} comes down over the whole run: leave out loop.cooldown.share, or "
            "take wsd, constant or inverse_sqrt"
        )
    warmup = min(config.warmup_steps, max(1, num_steps // _MOST_WARMUP))
    shape = SHAPES["cosine" if name == "cosine" else cooldown.shape]
    if name in _WHOLE_RUN:
        length: float = num_steps + 1 - warmup
    else:
        length = num_steps * _or(cooldown.share, _SHARES.get(name, 0.0))
    lowest = _or(cooldown.min_rate, _MIN_RATES.get(name, 0.0))

    def factor(step: int) -> float:
        at = step + 1
        if at < warmup:
            return at / warmup
        left = num_steps + 1 - at
        level = math.sqrt(max(1, warmup) / at) if name == "inverse_sqrt" else 1.0
        if left >= length:
            return level
        return level * (lowest + (1 - lowest) * max(0.0, shape(min(1.0, 1 - left / length))))

    return factor


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
