"""How fast each pair of a head's dimensions turns, and how scalings for longer contexts change it.

All of them give one angle per position and pair, and a factor for queries and keys; they may depend
on the length of the sequence (`RoPEConfig.depends_on_length`). Sources stand with the configs in
`config.positions`; the arithmetic is that of transformers, operation by operation.
"""

from __future__ import annotations

import math

import torch

from lmworks.models.config import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    RoPEConfig,
    YaRNScaling,
)


def inverse_frequencies(rope: RoPEConfig, rotary_dim: int, length: int = 0) -> torch.Tensor:
    """The angle per position of each pair, (rotary_dim / 2,) float32, radians.

    `length` is that of the sequence, for the scalings that depend on it.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    rope = rope.at(length)
    scaling = rope.scaling
    if isinstance(scaling, LongRoPEScaling):
        long = length > scaling.original_max_position_embeddings
        factors = torch.tensor(scaling.long_factor if long else scaling.short_factor)
        return 1.0 / (factors * rope.theta**exponents)
    frequencies = 1.0 / (_base(rope, rotary_dim, length) ** exponents)
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        kept = _llama3_kept(scaling, frequencies)
        return (1 - kept) * frequencies / scaling.factor + kept * frequencies
    if isinstance(scaling, YaRNScaling):
        kept = 1 - _yarn_ramp(scaling, rope.theta, rotary_dim)
        stretched = 1.0 / (scaling.factor * rope.theta**exponents)
        return stretched * (1 - kept) + frequencies * kept
    return frequencies


def _base(rope: RoPEConfig, rotary_dim: int, length: int) -> float:
    """`theta`, raised by the NTK scalings."""
    scaling = rope.scaling
    if isinstance(scaling, DynamicNTKScaling):
        grown = max(length / scaling.original_max_position_embeddings, 1.0)
        factor = scaling.factor * grown - (scaling.factor - 1)
    elif isinstance(scaling, NTKScaling):
        factor = scaling.factor
    else:
        return rope.theta
    return float(rope.theta * factor ** (rotary_dim / (rotary_dim - 2)))


def llama3_factors(scaling: Llama3Scaling, frequencies: torch.Tensor) -> torch.Tensor:
    """What each unscaled frequency is divided by, same shape: from 1 (high) to `factor` (low)."""
    kept = _llama3_kept(scaling, frequencies)
    return 1.0 / ((1.0 - kept) / scaling.factor + kept)


def _llama3_kept(scaling: Llama3Scaling, frequencies: torch.Tensor) -> torch.Tensor:
    """How much of each frequency is kept, from 0 (low) to 1 (high)."""
    waves = scaling.original_max_position_embeddings / (2 * math.pi / frequencies)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    return ((waves - scaling.low_freq_factor) / span).clamp(0.0, 1.0)


def _yarn_ramp(scaling: YaRNScaling, theta: float, rotary_dim: int) -> torch.Tensor:
    """From 0 (pairs that turn often, kept) to 1 (those that hardly turn), (rotary_dim / 2,)."""
    low = _turning(scaling.beta_fast, scaling, theta, rotary_dim)
    high = _turning(scaling.beta_slow, scaling, theta, rotary_dim)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001
    return ((torch.arange(rotary_dim // 2).float() - low) / (high - low)).clamp(0, 1)


def _turning(rotations: float, scaling: YaRNScaling, theta: float, rotary_dim: int) -> float:
    """The pair that turns so many times in the original context, as a fraction of pairs."""
    positions = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
    return rotary_dim * math.log(positions) / (2 * math.log(theta))


def attention_factor(rope: RoPEConfig, length: int) -> float:
    """What queries and keys of a sequence of `length` are multiplied by."""
    scaling = rope.at(length).scaling
    if not isinstance(scaling, YaRNScaling | LongRoPEScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    if isinstance(scaling, LongRoPEScaling):
        original = math.log(scaling.original_max_position_embeddings)
        return math.sqrt(1 + math.log(scaling.factor) / original)
    if scaling.mscale and scaling.mscale_all_dim:
        above, below = (yarn_mscale(scaling, m) for m in (scaling.mscale, scaling.mscale_all_dim))
        return above / below
    return yarn_mscale(scaling)


def yarn_mscale(scaling: YaRNScaling, mscale: float = 1.0) -> float:
    """0.1 mscale ln(factor) + 1, or 1 for a factor that does not stretch."""
    return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0


def reach(rope: RoPEConfig, length: int) -> int:
    """The length that stands for all lengths with the same frequencies; 0 for the shortest."""
    scaling = rope.scaling
    if isinstance(scaling, DynamicNTKScaling):
        return length if length > scaling.original_max_position_embeddings else 0
    return max((bound + 1 for bound in rope.bounds if bound < length), default=0)
