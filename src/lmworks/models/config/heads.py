"""Configs of what a model ends in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lmworks.models.config.base import check_choice, check_positive
from lmworks.models.config.feed_forward import ACTIVATIONS
from lmworks.models.config.norms import NormConfig


@dataclass(frozen=True, kw_only=True)
class LMHeadConfig:
    """Logits over the vocabulary.

    Attributes:
        bias: whether the head adds one per token.
        scale: what the last states are multiplied by first (T5: 1 / sqrt(hidden size)).
        softcap: logits become softcap * tanh(logit / softcap) (Gemma 2).
        transform: activation of a square layer before the head, as masked models have it.
        transform_norm: the norm after that layer.
    """

    kind: ClassVar[str] = "lm"
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    transform: str | None = None
    transform_norm: NormConfig | None = None

    def __post_init__(self) -> None:
        check_positive(self, "scale", *(("softcap",) if self.softcap is not None else ()))
        if self.transform is not None:
            check_choice(self, "transform", ACTIVATIONS)
