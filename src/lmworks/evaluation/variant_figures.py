"""What is known of each variant of a model, which of them are worth having, and which to take.

A variant is dominated when another one is no larger, no slower and no further from the original,
and better in one of these: nobody has a reason to take it. Speeds within 3 % count as equal. A
bound on quality is met when the whole interval meets it, not its middle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from lmworks.compression.measure import Speedup
from lmworks.evaluation.statistics import Interval

_SPEED_NOISE = 0.03

Preference = Literal["speed", "size", "quality"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantSpeed:
    """How fast a variant is beside the reference, in turns."""

    prompt_tokens_per_s: float
    decode_tokens_per_s: float
    decode_ratio: Speedup  # times the reference's speed
    prompt_ratio: Speedup
    weight_bytes: int
    peak_memory_bytes: int
    not_fused: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantFigures:
    """One variant; everything but its size and speed is against the reference, in pairs.

    Attributes:
        type: of the matrices, if it was made here; "": it was given.
        bits_per_byte: of the text. perplexity: per token.
        loss_growth: nats of the text over the reference's, minus 1.
        kl: nats per token. kl_99: what 99 of 100 places stay below.
        agreement: share of places where the likeliest token is the same.
        weight_error: relative and squared, of all kinds of matrices, each weighed by what it does
            to the answers where that was measured.
        accuracy: of each task, and the difference from the reference's.
        speed: None where it was not measured.
        forecast: the variant was not run; its KL is told from its weights, and the rest unknown.
    """

    name: str
    path: str
    type: str = ""
    file_bytes: int
    bits_per_weight: float
    bits_per_byte: Interval | None = None
    perplexity: float | None = None
    loss_growth: Interval | None = None
    kl: Interval
    kl_99: float = 0.0
    agreement: Interval | None = None
    weight_error: float = 0.0
    accuracy: Mapping[str, tuple[Interval, Interval]] = dataclasses.field(default_factory=dict)
    speed: VariantSpeed | None = None
    forecast: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a variant has to meet; None: no matter.

    Attributes:
        max_kl: nats per token. max_loss: growth of the loss, as a share.
        max_bytes: of the file. min_tokens_per_s: of one answer.
    """

    max_kl: float | None = None
    max_loss: float | None = None
    max_bytes: int | None = None
    min_tokens_per_s: float | None = None

    def broken_by(self, variant: VariantFigures) -> list[str]:
        """Which bounds a variant does not meet, in words."""
        broken = []
        high = _high(variant.kl)
        if self.max_kl is not None and high > self.max_kl:
            broken.append(f"KL may be {high:.4f}, above {self.max_kl:g}")
        if self.max_loss is not None and variant.loss_growth is not None:
            high = _high(variant.loss_growth)
            if high > self.max_loss:
                broken.append(f"loss may be {high:.2%} higher, above {self.max_loss:.2%}")
        if self.max_bytes is not None and variant.file_bytes > self.max_bytes:
            sizes = (variant.file_bytes, self.max_bytes)
            broken.append("{:,.1f} MB, above {:,.1f} MB".format(*(s / 1e6 for s in sizes)))
        if self.min_tokens_per_s is not None and variant.speed is not None:
            rate = variant.speed.decode_tokens_per_s
            if rate < self.min_tokens_per_s:
                broken.append(f"{rate:.1f} tokens/s, below {self.min_tokens_per_s:g}")
        return broken


def dominated_by(variant: VariantFigures, others: Sequence[VariantFigures]) -> str:
    """The name of a variant that leaves no reason to take this one; "" if there is none."""
    return next((other.name for other in others if _dominates(other, variant)), "")


def recommend(
    variants: Sequence[VariantFigures], bounds: Bounds, prefer: Preference = "speed"
) -> VariantFigures | None:
    """The best of those that meet all bounds; None if none does.

    Args:
        prefer: what is best: the most tokens per second (of those within 3 % of it the smallest),
            the smallest file, or the least KL.
    """
    able = [v for v in variants if not v.forecast and not bounds.broken_by(v)]
    if not able:
        return None
    if prefer == "quality":
        return min(able, key=lambda v: (v.kl.estimate, v.file_bytes))
    if prefer == "size" or any(v.speed is None for v in able):
        return min(able, key=lambda v: (v.file_bytes, v.kl.estimate))
    most = max(_rate(v) for v in able)
    near = [v for v in able if _rate(v) >= most * (1 - _SPEED_NOISE)]
    return min(near, key=lambda v: (v.file_bytes, v.kl.estimate))


def _dominates(one: VariantFigures, other: VariantFigures) -> bool:
    if one is other or one.forecast or other.forecast:
        return False
    mine, theirs = (v.kl.estimate for v in (one, other))
    rates = _rate(one), _rate(other)
    no_worse = (
        mine <= theirs
        and one.file_bytes <= other.file_bytes
        and rates[0] >= rates[1] * (1 - _SPEED_NOISE)
    )
    return no_worse and (
        mine < theirs
        or one.file_bytes < other.file_bytes
        or rates[0] > rates[1] * (1 + _SPEED_NOISE)
    )


def _rate(variant: VariantFigures) -> float:
    return variant.speed.decode_tokens_per_s if variant.speed else 0.0


def _high(interval: Interval) -> float:
    """The upper end; the estimate where there were too few texts to know it."""
    return interval.high if interval.known else interval.estimate
