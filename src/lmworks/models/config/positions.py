"""Configs of the ways in which a model knows where a token stands."""

from __future__ import annotations

import math
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
class NTKScaling:
    """The base raised so that the longest wave grows by `factor` and the shortest hardly at all.

    Source: u/bloc97 2023, told in Peng et al. 2023 (YaRN), arXiv 2309.00071, section 3.1.
    """

    kind: ClassVar[str] = "ntk"
    factor: float

    def __post_init__(self) -> None:
        check_positive(self, "factor")


@dataclass(frozen=True, kw_only=True)
class DynamicNTKScaling:
    """NTK scaling that grows with the sequence, from none at the original length on.

    At L positions the base is raised as for the factor `factor * L / original - (factor - 1)`.
    Source: u/emozilla 2023, told in arXiv 2309.00071, section 3.3.
    """

    kind: ClassVar[str] = "dynamic"
    factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        check_positive(self, "factor")
        check_count(self, "original_max_position_embeddings")
        if self.factor < 1:
            raise UserError(f"rope scaling dynamic: factor {self.factor:g} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class YaRNScaling:
    """Long waves divided by `factor`, short ones kept, a ramp between; scores made sharper.

    The ramp runs between the dimensions that turn `beta_slow` and `beta_fast` times in the
    original context, rounded outwards if `truncate`. Queries and keys are multiplied by
    `attention_factor`, by default 0.1 ln(factor) + 1, or with both mscales (DeepSeek) the
    quotient of 0.1 mscale ln(factor) + 1 and the same with `mscale_all_dim`.
    Source: Peng et al. 2023, arXiv 2309.00071.
    """

    kind: ClassVar[str] = "yarn"
    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        optional = ("attention_factor", "mscale", "mscale_all_dim")
        given = (name for name in optional if getattr(self, name) is not None)
        check_positive(self, "factor", "beta_fast", "beta_slow", *given)
        check_count(self, "original_max_position_embeddings")


@dataclass(frozen=True, kw_only=True)
class LongRoPEScaling:
    """Each frequency divided by a factor of its own, from two sets.

    Sequences of at most `original_max_position_embeddings` take `short_factor`, longer ones
    `long_factor`, one number per pair of dimensions. Queries and keys are multiplied by
    `attention_factor`, by default sqrt(1 + ln(factor) / ln(original)).
    Source: Ding et al. 2024, arXiv 2402.13753; Phi-3, arXiv 2404.14219.
    """

    kind: ClassVar[str] = "longrope"
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    factor: float
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        check_positive(self, "factor", *(("attention_factor",) if self.attention_factor else ()))
        check_count(self, "original_max_position_embeddings", least=2)
        for name in ("short_factor", "long_factor"):
            if not all(0 < number < math.inf for number in getattr(self, name)):
                raise UserError(f"rope scaling longrope: {name} must hold numbers above 0")


RoPEScaling = (
    LinearScaling | NTKScaling | DynamicNTKScaling | YaRNScaling | LongRoPEScaling | Llama3Scaling
)


@dataclass(frozen=True, kw_only=True)
class RoPEConfig:
    """Rotary positions: `theta` is the base of the wave lengths, `scaling` stretches them.

    `fraction` is the part of each head that is turned, the first dimensions (GPT-NeoX, Phi).
    `native` says how sequences are turned that are no longer than the model was trained on: with
    it, a scaling for longer ones changes nothing about them.
    """

    theta: float = 10000.0
    scaling: RoPEScaling | None = None
    fraction: float = 1.0
    native: NativeWindow | None = None

    def __post_init__(self) -> None:
        check_positive(self, "theta", "fraction")
        if self.fraction > 1:
            raise UserError(f"rope: fraction {self.fraction:g} must be at most 1")
        if self.native is not None:
            self._check_native(self.native)

    def _check_native(self, native: NativeWindow) -> None:
        if native.rope.fraction != self.fraction:
            raise UserError(
                f"rope: {native.rope.fraction:g} of a head is turned in the native window and "
                f"{self.fraction:g} beyond it: both must be the same"
            )
        if native.rope.native is not None and native.rope.native.length >= native.length:
            raise UserError(
                f"rope: a native window of {native.rope.native.length} can't lie in one of "
                f"{native.length}"
            )
        if self.grows or native.rope.grows:
            raise UserError("rope scaling dynamic has a native window of its own: leave it out")

    def at(self, length: int) -> RoPEConfig:
        """What turns a sequence of `length`: this, or what its native window says."""
        rope = self
        while rope.native is not None and length <= rope.native.length:
            rope = rope.native.rope
        return rope

    @property
    def bounds(self) -> tuple[int, ...]:
        """The lengths beyond which a sequence is turned otherwise than up to them, ascending."""
        found = set[int]()
        if isinstance(self.scaling, LongRoPEScaling):
            found.add(self.scaling.original_max_position_embeddings)
        if self.native is not None:
            above = {bound for bound in found if bound > self.native.length}
            below = {bound for bound in self.native.rope.bounds if bound < self.native.length}
            found = above | below | {self.native.length}
        return tuple(sorted(found))

    @property
    def grows(self) -> bool:
        """Whether every length beyond the original one has frequencies of its own."""
        return isinstance(self.scaling, DynamicNTKScaling)

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies change as a sequence grows, at some lengths or at all."""
        return self.grows or bool(self.bounds)

    def rotary_dim(self, head_dim: int) -> int:
        """How many of a head's dimensions are turned.

        Raises: UserError if that does not fit the scaling.
        """
        dim = int(head_dim * self.fraction)
        if isinstance(self.scaling, LongRoPEScaling):
            sizes = {len(self.scaling.short_factor), len(self.scaling.long_factor)}
            if sizes != {dim // 2}:
                raise UserError(
                    f"rope scaling longrope: {sorted(sizes)} factors for {dim} rotary dimensions; "
                    f"it needs {dim // 2}, one per pair"
                )
        if isinstance(self.scaling, NTKScaling | DynamicNTKScaling) and dim <= 2:
            raise UserError(f"rope scaling {self.scaling.kind} needs more than {dim} dimensions")
        if isinstance(self.scaling, YaRNScaling) and self.theta <= 1:
            raise UserError(f"rope scaling yarn needs a theta above 1, not {self.theta:g}")
        if self.native is not None:
            self.native.rope.rotary_dim(head_dim)
        return dim


@dataclass(frozen=True, kw_only=True)
class NativeWindow:
    """How a model that was stretched turns sequences of at most `length` positions.

    `rope` may have a native window itself: a ladder of scalings, each for lengths up to the next.
    """

    length: int
    rope: RoPEConfig

    def __post_init__(self) -> None:
        check_count(self, "length")


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
