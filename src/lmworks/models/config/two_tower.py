"""The config of two encoders whose vectors meet in one space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lmworks.core.errors import UserError
from lmworks.models.config.heads import EmbeddingHeadConfig
from lmworks.models.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig:
    """A text and a vision encoder that end in vectors of one size.

    `logit_bias` adds a learned number to all scores (SigLIP).
    """

    kind: ClassVar[str] = "two_tower"
    text: ModelConfig
    vision: ModelConfig
    logit_bias: bool = False

    def __post_init__(self) -> None:
        if self.vision.inputs is None:
            raise UserError("two towers: the vision tower reads token ids: give it inputs")
        sizes = [_vector_size(tower) for tower in (self.text, self.vision)]
        if None in sizes or sizes[0] != sizes[1]:
            raise UserError(
                f"two towers: both must end in vectors of one size, not {sizes[0]} and {sizes[1]}"
            )


# What a folder of weights may hold.
AnyConfig = ModelConfig | TwoTowerConfig


def _vector_size(tower: ModelConfig) -> int | None:
    head = tower.head
    return (head.size or tower.hidden_size) if isinstance(head, EmbeddingHeadConfig) else None
