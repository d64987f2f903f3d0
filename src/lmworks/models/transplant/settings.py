"""The settings of the auxiliary embedding (static_embedding.py), which import nothing heavy."""

from __future__ import annotations

import dataclasses

from lmworks.core.config import option
from lmworks.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class StaticEmbeddingConfig:
    """The auxiliary embedding of focus, tokenadapt and omp."""

    dim: int = option(256, help="numbers in a vector")
    window: int = option(5, help="neighbours to each side that count")
    min_count: int = option(3, help="a token seen less often has no vector")

    def __post_init__(self) -> None:
        for name in ("dim", "window", "min_count"):
            if getattr(self, name) < 1:
                raise UserError(f"auxiliary.{name} = {getattr(self, name)}: a number from 1 up")
