"""Settings of learning task after task, apart from the code so that a command loads no torch."""

from __future__ import annotations

import dataclasses
from typing import Literal

from lmworks.core.config import option
from lmworks.core.errors import UserError, unknown_name

# What `method` may say; several are joined by +, as in replay+ewc.
METHODS = ("none", "replay", "kl", "ewc", "l2", "interpolate", "lora")
METHOD_HELP = f"how earlier tasks are held: {', '.join(METHODS)}; or several, as replay+ewc"
_NEED_MEMORY = ("replay", "kl", "interpolate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HoldConfig:
    """Fine points of how earlier tasks are held."""

    memory_rows: int = option(500, help="rows of all earlier tasks together that are kept")
    share: float = option(0.5, help="share of the steps that replay and kl give to kept rows")
    ewc_strength: float = option(0.1, help="weight of the penalty of ewc")
    ewc_decay: float = option(0.9, help="what stays of the Fisher information with each round")
    fisher_rows: int = option(64, help="rows of a task that ewc weighs parameters by")
    l2_strength: float = option(0.1, help="weight of the penalty of l2")
    rank: int = option(16, help="width of each task's adapter in lora")
    orthogonal: float = option(0.5, help="how strongly an adapter keeps off those before it")
    budget: float = option(0.01, help="rise of the loss on kept rows that interpolate allows")
    objective: Literal["dpo", "ipo", "simpo", "orpo", "kto"] = option(
        "dpo", help="what is learnt of pairs; votes are learnt by kto"
    )
    beta: float = option(0.0, help="its strength; 0 takes the objective's own default")

    def __post_init__(self) -> None:
        if self.memory_rows < 0:
            raise UserError(f"memory_rows = {self.memory_rows}: a number from 0 up")
        if not 0 <= self.share < 1:
            raise UserError(f"share = {self.share}: a share of the steps, from 0 up to below 1")
        if not 0 <= self.ewc_decay <= 1:
            raise UserError(f"ewc_decay = {self.ewc_decay}: a share from 0 to 1")
        if self.fisher_rows < 1:
            raise UserError(f"fisher_rows = {self.fisher_rows}: at least one")


def parse_method(text: str, hold: HoldConfig) -> tuple[str, ...]:
    """The names in `replay+ewc`. Raises: UserError for an unknown one, or two that exclude."""
    names = tuple(part.strip() for part in text.split("+"))
    for name in names:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    if len(set(names)) != len(names) or ("none" in names and len(names) > 1):
        raise UserError(f"method {text!r}: name each once, and none alone")
    if {"replay", "kl"} <= set(names):
        raise UserError(f"method {text!r}: replay and kl both take the steps on kept rows")
    if "lora" in names and {"ewc", "l2"} & set(names):
        raise UserError(f"method {text!r}: with lora the weights that ewc and l2 hold stay as is")
    if not hold.memory_rows and (found := [n for n in names if n in _NEED_MEMORY]):
        raise UserError(f"{found[0]} needs kept rows, and memory_rows is 0: take ewc, l2 or lora")
    return names
