"""The trainer's settings, apart from the trainer so that the command line need not load torch."""

from __future__ import annotations

import dataclasses

from lmworks.core.config import option
from lmworks.training.optimizers.base import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How fast, how it comes down, how often to look."""

    warmup_steps: int = option(40, help="steps over which the learning rate rises")
    schedule: str = option("wsd", help="how it comes down: wsd, linear, cosine")
    eval_every: int = option(50, help="steps between looks at held-out text")
    optimizer: OptimizerConfig = option(OptimizerConfig(), help="which optimizer, and its rates")
