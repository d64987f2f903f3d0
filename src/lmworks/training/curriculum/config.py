"""The settings of a curriculum, apart from it so that the command line need not load NumPy."""

from __future__ import annotations

import dataclasses
from typing import Literal

from lmworks.core.config import option

Curriculum = Literal["uniform", "length", "quality", "perplexity", "mixture"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PacingConfig:
    """How fast a curriculum by length, quality or perplexity opens what it begins without."""

    start: float = option(0.25, help="part of the text, or of the length, that is open at first")
    share: float = option(0.5, help="part of the run after which all is open")
    shape: Literal["linear", "root"] = option(
        "linear", help="of the way there; root: fast first, so that what is new gets equal time"
    )
    reverse: bool = option(False, help="begin at the other end: hard text, or good text, first")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Which sources a batch is drawn from, and how that changes over a run.

    A source is a group, a file, a folder or the beginning of a path; `*` stands for what no other
    name covers.
    """

    weights: dict[str, float] = option(
        {}, help="part of each source; empty: by its size, see temperature"
    )
    final_weights: dict[str, float] = option(
        {}, help="parts at the end; empty: as at the beginning"
    )
    change_from: float = option(0.0, help="part of the run up to which the first weights hold")
    change_to: float = option(1.0, help="part of the run from which on the last weights hold")
    temperature: float = option(
        1.0, help="sizes to the power of 1 / temperature; above 1: small sources more often"
    )
