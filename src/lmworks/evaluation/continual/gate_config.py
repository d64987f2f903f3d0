"""Settings of the gates, apart from the code so that a command loads no array."""

from __future__ import annotations

import dataclasses
from typing import Literal

from lmworks.core.config import option
from lmworks.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateConfig:
    """What a candidate has to show to be served."""

    tolerance: float = option(
        0.02, help="what an earlier task may lose, as a share of its bits per byte"
    )
    least: float = option(
        0.005, help="bits per byte that may be lost in any case, however few there are"
    )
    new: Literal["better", "not-worse"] = option(
        "better", help="what has to be shown of the task that was learnt"
    )
    confidence: float = option(0.95, help="of the intervals that gates go by")
    max_heldout: int = option(200, help="held-out rows of each task that are measured; 0: all")
    max_characters: int = option(
        4000, help="characters of a held-out document that are measured; 0: all"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise UserError(f"tolerance = {self.tolerance}: a share, from 0 up to below 1")
        if not 0.5 <= self.confidence < 1:
            raise UserError(f"confidence = {self.confidence}: from 0.5 up to below 1")
