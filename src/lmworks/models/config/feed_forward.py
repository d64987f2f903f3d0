"""Configs of the feed-forward parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lmworks.models.config.base import BlockConfig, check_choice, check_count

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
