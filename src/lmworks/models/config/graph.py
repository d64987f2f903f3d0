"""The config of attention that takes in a text's neighbours in a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lmworks.core.errors import UserError
from lmworks.models.config.attention import AttentionConfig
from lmworks.models.config.base import Kept

if TYPE_CHECKING:
    from lmworks.models.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class GraphAttentionConfig(AttentionConfig):
    """Attention of a GraphFormer: what the neighbours' first states say is one more key.

    Attributes:
        every_node: whether every text takes in the others of its graph, or the centre alone (the
            paper's unidirectional aggregation, as its code has it): neighbours are then encoded as
            if they stood alone, and can be kept.

    Source: Yang et al. 2021, arXiv 2105.02605.
    """

    kind: ClassVar[str] = "graph_attention"
    every_node: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.causal or self.rope or self.alibi or self.pattern or self.softcap:
            raise UserError(
                "graph attention: a position that stands nowhere in the text goes with neither "
                "causal, rope, alibi, pattern nor softcap"
            )

    def honours(self) -> frozenset[str]:
        """Nothing: rows are the texts of a graph."""
        return frozenset()

    def kept(self, model: ModelConfig) -> Kept:
        """Nothing: a graph is read at once. Raises: UserError for heads that make no state."""
        if self.num_attention_heads * self.head_dim != model.hidden_size:
            raise UserError(
                f"graph attention: {self.num_attention_heads} heads of {self.head_dim} do not make "
                f"a state of {model.hidden_size}"
            )
        return Kept()
