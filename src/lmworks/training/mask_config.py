"""What of a conversation is learnt, apart from the code so that the command line loads no array."""

from __future__ import annotations

import dataclasses
from typing import Literal

from lmworks.core.config import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """What of a conversation is learnt."""

    loss_on: Literal["answers", "last", "everything"] = option(
        "answers", help="all answers, the last one, or every token"
    )
    thoughts: bool = option(True, help="learn the assistant's reasoning too, not only its answer")
    tool_calls: bool = option(True, help="learn from answers that call tools")
    date: str = option(
        "2024-07-26", help="what a template is told that asks for the day (YYYY-MM-DD)"
    )
