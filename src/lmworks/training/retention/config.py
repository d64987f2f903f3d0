"""Settings of retention, apart from the methods so that the command line loads no torch."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from lmworks.core.config import option
from lmworks.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """Fine points of how a model is held to its general text, and how that is looked at."""

    coefficient: float = option(0.01, help="weight of the penalty of ewc and l2")
    fisher_windows: int = option(32, help="windows of general text that ewc weighs parameters by")
    look_every: int = option(25, help="steps between looks at held-out general text")
    look_windows: int = option(32, help="windows of held-out general text that are looked at")
    over_budget: Literal["raise", "stop"] = option(
        "raise", help="beyond the budget, hold on more strongly, or stop"
    )


def parse_budget(text: str) -> float | None:
    """`1%` or `0.01` as a share; None for nothing.

    Raises: UserError for anything else, and below zero.
    """
    if not text.strip():
        return None
    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if rest or not (math.isfinite(share) and share >= 0):
        raise UserError(f"forgetting budget {text!r}: write a share as 1% or 0.01")
    return share
