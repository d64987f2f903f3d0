"""Configs of attention and of the patterns in which it looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from lmworks.core.errors import UserError
from lmworks.models.config.base import EVERYTHING, BlockConfig, Kept, check_count, check_positive
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
class LongformerPattern:
    """A window around each position, and global tokens that see and are seen by all.

    Attributes:
        window: positions seen to both sides together, even; causal: as in `SlidingWindow`.
        num_global_tokens: the first ones of every sequence are global; more can be named with
            each input (`global_attention_mask`).
        projections: whether global tokens attend through projections of their own.

    Source: Beltagy et al. 2020, arXiv 2004.05150, section 3.
    """

    kind: ClassVar[str] = "longformer"
    window: int
    num_global_tokens: int = 0
    projections: bool = True

    def __post_init__(self) -> None:
        check_count(self, "window")
        check_count(self, "num_global_tokens", least=0)


@dataclass(frozen=True, kw_only=True)
class BigBirdPattern:
    """Blocks that see their neighbours, the two ends, and blocks drawn at random.

    A sequence of up to 5 + 2 x `num_random_blocks` blocks is attended to in full.

    Attributes:
        block_size: positions per block.
        num_random_blocks: drawn for each block and head.
        seed: of the draw, which every layer makes for itself; None takes the first block for each
            random one, as transformers does in eval mode.

    Source: Zaheer et al. 2020, arXiv 2007.14062, section 2.
    """

    kind: ClassVar[str] = "bigbird"
    block_size: int
    num_random_blocks: int
    seed: int | None = 0

    def __post_init__(self) -> None:
        check_count(self, "block_size")
        check_count(self, "num_random_blocks", least=0)
        if self.seed is not None:
            check_count(self, "seed", least=0)


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
    pattern: SlidingWindow | LongformerPattern | BigBirdPattern | None = None
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

        self._check_pattern()

    def _check_pattern(self) -> None:
        pattern = self.pattern
        if not isinstance(pattern, LongformerPattern | BigBirdPattern):
            return
        if self.alibi or self.softcap is not None:
            raise UserError(
                f"attention: pattern {pattern.kind} goes with neither alibi nor softcap"
            )
        if isinstance(pattern, BigBirdPattern) and self.causal:
            raise UserError("attention: pattern bigbird is for encoders: causal must be false")
        if isinstance(pattern, LongformerPattern):
            if self.causal and pattern.projections:
                raise UserError("attention: pattern longformer has no projections when causal")
            if not self.causal and pattern.window % 2:
                raise UserError(f"attention: a longformer window is even, not {pattern.window}")

    def honours(self) -> frozenset[str]:
        """All of it, but for patterns of blocks."""
        blocks = isinstance(self.pattern, LongformerPattern | BigBirdPattern)
        return frozenset() if blocks else EVERYTHING

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
