"""Configs of the feed-forward parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from lmworks.core.errors import UserError
from lmworks.models.config.base import (
    EVERYTHING,
    BlockConfig,
    check_choice,
    check_count,
    check_positive,
)

if TYPE_CHECKING:
    from lmworks.models.config.model import ModelConfig

# The field's names; "gelu" is the exact one, "gelu_tanh" its approximation.
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu_squared", "tanh")


@dataclass(frozen=True, kw_only=True)
class MLPConfig(BlockConfig):
    """Two products with an activation between, or three if gated.

    Gated it is `down(activation(gate(x)) * up(x))`: SwiGLU with silu, GeGLU with gelu; else
    `down(activation(up(x)))`. Source: Shazeer 2020, arXiv 2002.05202.
    """

    kind: ClassVar[str] = "mlp"
    intermediate_size: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        check_count(self, "intermediate_size")
        check_choice(self, "activation", ACTIVATIONS)

    def honours(self) -> frozenset[str]:
        """All of it: a position is worked on by itself."""
        return EVERYTHING


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """How tokens are sent to experts; see `models.routing`.

    Attributes:
        scoring: an expert's score is its "softmax" over all, or its own "sigmoid".
        norm_topk_prob: whether the weights of a token's experts sum to 1.
        scale: of all weights.
        bias: one number per expert, added to the scores for the choice alone. In training the
            optimizer moves it against the load, without a loss (DeepSeek-V3).
        num_groups, num_groups_per_tok, num_best: with more than one group, a token's experts come
            from the groups with the highest sum of their `num_best` best scores.
        aux_loss_coef: of the load-balancing loss, the mean over the layers that have experts.
        z_loss_coef: of the router's z-loss, likewise.
    """

    scoring: str = "softmax"
    norm_topk_prob: bool = True
    scale: float = 1.0
    bias: bool = False
    num_groups: int = 1
    num_groups_per_tok: int = 1
    num_best: int = 1
    aux_loss_coef: float = 0.01
    z_loss_coef: float = 0.0

    def __post_init__(self) -> None:
        check_choice(self, "scoring", ("softmax", "sigmoid"))
        check_positive(self, "scale")
        check_count(self, "num_groups", "num_groups_per_tok", "num_best")
        used = [name for name in ("aux_loss_coef", "z_loss_coef") if getattr(self, name) != 0]
        check_positive(self, *used)
        if self.num_groups_per_tok > self.num_groups:
            raise UserError(
                f"router: num_groups_per_tok {self.num_groups_per_tok} is above num_groups "
                f"{self.num_groups}"
            )


@dataclass(frozen=True, kw_only=True)
class MoEConfig(BlockConfig):
    """Many feed-forwards, of which each token goes through a few.

    Source: Shazeer et al. 2017, arXiv 1701.06538; as in Mixtral (arXiv 2401.04088) without a limit
    on an expert's tokens.

    Attributes:
        intermediate_size: of each expert.
        shared_intermediate_size: of a feed-forward that all tokens go through as well; 0 for none
            (DeepSeekMoE, arXiv 2401.06066, section 3.2).
        shared_gate: whether what that one gives counts as a sigmoid says (Qwen).
    """

    kind: ClassVar[str] = "moe"
    num_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    activation: str = "silu"
    gated: bool = True
    router: RouterConfig = field(default_factory=RouterConfig)
    shared_intermediate_size: int = 0
    shared_gate: bool = False

    def __post_init__(self) -> None:
        check_count(self, "num_experts", "num_experts_per_tok", "intermediate_size")
        check_count(self, "shared_intermediate_size", least=0)
        check_choice(self, "activation", ACTIVATIONS)
        groups, experts = self.router.num_groups, self.num_experts
        if experts % groups or self.router.num_best > experts // groups:
            raise UserError(
                f"moe: {experts} experts can't stand in {groups} groups of at least "
                f"{self.router.num_best}"
            )
        if self.num_experts_per_tok > experts // groups * self.router.num_groups_per_tok:
            raise UserError(
                f"moe: num_experts_per_tok {self.num_experts_per_tok} is above the "
                f"{experts // groups * self.router.num_groups_per_tok} experts that a token may use"
            )
        if self.shared_gate and not self.shared_intermediate_size:
            raise UserError("moe: shared_gate needs a shared_intermediate_size above 0")

    def honours(self) -> frozenset[str]:
        """All of it: a position is worked on by itself."""
        return EVERYTHING

    def idle_parameters(self, model: ModelConfig) -> int:
        """Those of the experts that a token does not go through."""
        one = (3 if self.gated else 2) * model.hidden_size * self.intermediate_size
        return (self.num_experts - self.num_experts_per_tok) * one
