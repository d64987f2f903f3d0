"""What a decoder is made of, as nested frozen dataclasses that load without torch.

Every slot (`mixer`, `feed_forward`, the rotary `scaling`) holds a config object, and its type
chooses the block: another mixer is another config type in the same slot, never a flag. `kind`
is the block's name in `lmworks.models.base.BLOCKS`.

A config that contradicts itself raises `UserError` when it is made, so a `ModelConfig` that
exists can be built. Left out: dropout (no Llama-shaped checkpoint of the last years uses it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lmworks.core.errors import UserError

# Above any published model; keeps a hostile config from building blocks for ever.
_MOST_LAYERS = 1024
_LARGEST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Every rotary frequency divided by `factor`. Source: Chen et al. 2023, arXiv 2306.15595."""

    kind: ClassVar[str] = "linear"
    factor: float

    def __post_init__(self) -> None:
        _positive(self, "factor")


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
        _positive(self, "factor", "low_freq_factor", "high_freq_factor")
        _count(self, "original_max_position_embeddings")
        if self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                f"rope scaling llama3: high_freq_factor {self.high_freq_factor:g} must be above "
                f"low_freq_factor {self.low_freq_factor:g}"
            )


@dataclass(frozen=True, kw_only=True)
class RoPEConfig:
    """Rotary positions: `theta` is the base of the wave lengths, `scaling` stretches them."""

    theta: float = 10000.0
    scaling: LinearScaling | Llama3Scaling | None = None

    def __post_init__(self) -> None:
        _positive(self, "theta")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Causal attention with grouped key-value heads; `bias` puts one on q, k, v and output."""

    kind: ClassVar[str] = "attention"
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: RoPEConfig = field(default_factory=RoPEConfig)
    bias: bool = False

    def __post_init__(self) -> None:
        _count(self, "num_attention_heads", "num_key_value_heads", "head_dim")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"attention: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"attention: head_dim {self.head_dim} is odd; rotary needs pairs")


@dataclass(frozen=True, kw_only=True)
class SwiGLUConfig:
    """The gated feed-forward `down(silu(gate(x)) * up(x))`; `bias` puts one on all three."""

    kind: ClassVar[str] = "swiglu"
    intermediate_size: int
    bias: bool = False

    def __post_init__(self) -> None:
        _count(self, "intermediate_size")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder: embedding, `num_hidden_layers` x (mixer, feed-forward), norm, head.

    `max_position_embeddings` is the context the weights were made for; the forward does not
    refuse more, a `KVCache` has its own limit.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    mixer: AttentionConfig
    feed_forward: SwiGLUConfig
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048

    def __post_init__(self) -> None:
        _count(self, "vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")
        _positive(self, "rms_norm_eps")
        if self.num_hidden_layers > _MOST_LAYERS:
            raise UserError(
                f"model: num_hidden_layers {self.num_hidden_layers} is above {_MOST_LAYERS}"
            )


def _count(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
            raise UserError(f"{_owner(config)}: {name} must be a whole number >= 1, not {value!r}")


def _positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise UserError(f"{_owner(config)}: {name} must be a number above 0, not {value!r}")


def _owner(config: Any) -> str:
    words = {"ModelConfig": "model", "RoPEConfig": "rope"}
    name = type(config).__name__
    return words.get(name) or str(getattr(config, "kind", name))
