"""Config of attention over compressed keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from lmworks.core.errors import UserError
from lmworks.models.config.base import EVERYTHING, BlockConfig, Kept, check_count, check_positive
from lmworks.models.config.positions import RoPEConfig

if TYPE_CHECKING:
    from lmworks.models.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class LatentAttentionConfig(BlockConfig):
    """Keys and values of all heads out of one small vector per position, the latent.

    Only that vector and one key for positions, shared by all heads, are kept of a sequence.
    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.

    Attributes:
        q_lora_rank: size of the queries' own latent; None projects them at once.
        kv_lora_rank: size of the latent of keys and values.
        qk_nope_head_dim: of each head's queries and keys, the part without positions.
        qk_rope_head_dim: ... and the part that is turned.
        v_head_dim: size of each head's values.
        bias: whether the projections from and to the hidden size have one.
        scale: of the scores; None is 1 / sqrt(size of a head's queries).
        eps: of the norms over the latents.
    """

    kind: ClassVar[str] = "latent_attention"
    num_attention_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    rope: RoPEConfig = field(default_factory=RoPEConfig)
    bias: bool = False
    scale: float | None = None
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_count(
            self,
            "num_attention_heads",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
            *(("q_lora_rank",) if self.q_lora_rank is not None else ()),
        )
        check_positive(self, "eps", *(("scale",) if self.scale is not None else ()))
        if self.rope.fraction != 1 or self.rope.rotary_dim(self.qk_rope_head_dim) % 2:
            raise UserError(
                "latent_attention: qk_rope_head_dim is turned as a whole and must be even"
            )
        if self.rope.depends_on_length:
            raise UserError(
                "latent_attention keeps turned keys: rotary frequencies that depend on the length "
                "are not supported"
            )

    @property
    def qk_head_dim(self) -> int:
        """Size of a head's queries and keys."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def honours(self) -> frozenset[str]:
        """All of it."""
        return EVERYTHING

    def kept(self, model: ModelConfig) -> Kept:
        """The latent and the shared turned key, per position."""
        sizes = {"latents": (1, self.kv_lora_rank), "rope_keys": (1, self.qk_rope_head_dim)}
        return Kept(per_position=sizes)
