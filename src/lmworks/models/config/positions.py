"""Configs of the ways in which a model knows where a token stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lmworks.core.errors import UserError
from lmworks.models.config.base import check_count, check_positive


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Every rotary frequency divided by `factor`. Source: Chen et al. 2023, arXiv 2306.15595."""

    kind: ClassVar[str] = "linear"
    factor: float

    def __post_init__(self) -> None:
        check_positive(self, "factor")


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Low rotary frequencies divided by `factor`, high ones kept, a ramp between them.

    A frequency is low when its wave is longer than `original_max_position_embeddings /
    low_freq_factor` positions, high when shorter than that over `high_freq_factor`.
    Source: The Llama 3 herd of models, arXiv 2407.21783, and the Llama 3.1 reference code.
    """

    kind: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        check_positive(self, "factor", "low_freq_factor", "high_freq_factor")
        check_count(self, "original_max_position_embeddings")
        if self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                f"rope scaling llama3: high_freq_factor {self.high_freq_factor:g} must be above "
                f"low_freq_factor {self.low_freq_factor:g}"
            )


@dataclass(frozen=True, kw_only=True)
class RoPEConfig:
    """Rotary positions: `theta` is the base of the wave lengths, `scaling` stretches them.

    `fraction` is the part of each head that is turned, the first dimensions (GPT-NeoX, Phi).
    """

    theta: float = 10000.0
    scaling: LinearScaling | Llama3Scaling | None = None
    fraction: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "theta", "fraction")
        if self.fraction > 1:
            raise UserError(f"rope: fraction {self.fraction:g} must be at most 1")

    def rotary_dim(self, head_dim: int) -> int:
        """How many of a head's dimensions are turned."""
        return int(head_dim * self.fraction)


@dataclass(frozen=True, kw_only=True)
class LearnedPositions:
    """A learned vector per position is added to the embedding.

    The table holds `num_positions` rows; position p takes row p + `offset` (2 in BART and
    RoBERTa, whose first rows stand for padding).
    """

    kind: ClassVar[str] = "learned"
    num_positions: int
    offset: int = 0

    def __post_init__(self) -> None:
        check_count(self, "num_positions")
        check_count(self, "offset", least=0)


@dataclass(frozen=True, kw_only=True)
class SinusoidalPositions:
    """Fixed sines and cosines are added to the embedding.

    `interleaved`: sine and cosine take turns (the paper); otherwise all sines come first.
    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5.
    """

    kind: ClassVar[str] = "sinusoidal"
    theta: float = 10000.0
    interleaved: bool = True

    def __post_init__(self) -> None:
        check_positive(self, "theta")


@dataclass(frozen=True, kw_only=True)
class RelativePositions:
    """A learned number per head and distance is added to the scores of all layers.

    Distances share `num_buckets`: near ones have one each, far ones lie in buckets that widen up
    to `max_distance`. `bidirectional` halves them: one half for what stands before, one for what
    follows. Source: Raffel et al. 2020 (T5), arXiv 1910.10683, section 2.1.
    """

    kind: ClassVar[str] = "relative"
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True

    def __post_init__(self) -> None:
        check_count(self, "num_buckets", least=4)
        check_count(self, "max_distance")
        exact = self.num_buckets // (4 if self.bidirectional else 2)
        if self.max_distance <= exact:
            raise UserError(
                f"relative positions: max_distance {self.max_distance} must be above {exact}, the "
                f"distances that have one of {self.num_buckets} buckets each"
            )
