"""Configs of the normalisations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lmworks.models.config.base import check_positive


@dataclass(frozen=True, kw_only=True)
class RMSNormConfig:
    """Divide by the root mean square; with `unit_offset` the scale is 1 + weight (Gemma)."""

    kind: ClassVar[str] = "rms_norm"
    eps: float = 1e-5
    unit_offset: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "eps")


@dataclass(frozen=True, kw_only=True)
class LayerNormConfig:
    """Subtract the mean, divide by the spread, scale; `bias` adds a learned shift."""

    kind: ClassVar[str] = "layer_norm"
    eps: float = 1e-5
    bias: bool = True

    def __post_init__(self) -> None:
        check_positive(self, "eps")


NormConfig = RMSNormConfig | LayerNormConfig
