"""Configs of attention and of the patterns in which it looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from lmworks.core.errors import UserError
from lmworks.models.config.base import BlockConfig, Kept, check_count, check_positive
from lmworks.models.config.norms import NormConfig
from lmworks.models.config.positions import RoPEConfig

if TYPE_CHECKING:
    from lmworks.models.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """A position sees the last `window` ones, itself included; both ways if not causal.

    Source: Beltagy et al. 2020, arXiv 2004.05150; Jiang et al. 2023 (Mistral), arXiv 2310.06825.
    """

    kind: ClassVar[str] = "window"
    window: int

    def __post_init__(self) -> None:
        check_count(self, "window")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(BlockConfig):
    """Attention with grouped key-value heads.

    Attributes:
        rope: rotary positions, or None.
        alibi: scores fall with distance, by a slope of each head's own (Press et al. 2022).
        causal: whether a position sees only itself and those before it.
        pattern: which positions are looked at, if not all.
        bias: the projections that have one, as letters: "qkvo", "qkv", "" ...
        qk_norm: norms queries and keys, each head ("head") or all heads at once ("all").
        scale: of the scores; None is 1 / sqrt(head_dim).
        softcap: scores become softcap * tanh(score / softcap) (Gemma 2).
    """

    kind: ClassVar[str] = "attention"
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: RoPEConfig | None = field(default_factory=RoPEConfig)
    alibi: bool = False
    causal: bool = True
    pattern: SlidingWindow | None = None
    bias: str = ""
    qk_norm: NormConfig | None = None
    qk_norm_over: str = "head"
    scale: float | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        check_count(self, "num_attention_heads", "num_key_value_heads", "head_dim")
        check_positive(self, *(n for n in ("scale", "softcap") if getattr(self, n) is not None))
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"attention: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.rope is not None and self.rope.rotary_dim(self.head_dim) % 2:
            raise UserError(
                f"attention: {self.rope.rotary_dim(self.head_dim)} rotary dimensions of head_dim "
                f"{self.head_dim} are an odd number; rotary needs pairs"
            )
        if set(self.bias) - set("qkvo"):
            raise UserError(f"attention: bias {self.bias!r} holds more than the letters q, k, v, o")
        if self.qk_norm_over not in ("head", "all"):
            raise UserError(f"attention: qk_norm_over {self.qk_norm_over!r} is not head or all")

    def kept(self, model: ModelConfig) -> Kept:
        """Keys and values, (key-value heads, head size) per position."""
        size = (self.num_key_value_heads, self.head_dim)
        window = self.pattern.window if isinstance(self.pattern, SlidingWindow) else None
        return Kept(per_position={"keys": size, "values": size}, window=window)

    def sequence_flops(self, model: ModelConfig, context_length: int) -> float:
        """Scores and weighted sums, over the positions that are seen on average."""
        seen = context_length / 2 if self.causal else context_length
        if isinstance(self.pattern, SlidingWindow):
            seen = min(seen, self.pattern.window)
        return 4.0 * self.num_attention_heads * self.head_dim * seen
