"""The protocol of the blocks, and the table that leads from a config's `kind` to its block.

A layer is a mixer (moves information between positions) and a feed-forward (works on each
position). A new one is a config type with a `kind`, one file with the module, and one line here;
other packages add theirs through the entry-point group `lmworks.block`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from lmworks.core.tables import look_up

if TYPE_CHECKING:
    import torch

    from lmworks.models.config import ModelConfig
    from lmworks.models.context import Context

BLOCKS = {
    "attention": "lmworks.models.attention:Attention",
    "graph_attention": "lmworks.models.graph_attention:GraphAttention",
    "latent_attention": "lmworks.models.latent_attention:LatentAttention",
    "mlp": "lmworks.models.feed_forward:MLP",
    "mamba": "lmworks.models.mamba:Mamba",
    "mamba2": "lmworks.models.mamba2:Mamba2",
    "rwkv_time_mix": "lmworks.models.rwkv:TimeMix",
    "rwkv_channel_mix": "lmworks.models.rwkv:ChannelMix",
    "gated_linear_attention": "lmworks.models.gated_linear_attention:GatedLinearAttention",
    "short_convolution": "lmworks.models.short_convolution:ShortConvolution",
    "patches": "lmworks.models.inputs:PatchEmbedding",
    "audio": "lmworks.models.inputs:AudioEmbedding",
    "moe": "lmworks.models.moe:MoE",
}


class Block(Protocol):
    """Built as `Block(config.mixer, config)`. Normed hidden states in, their update out."""

    def __call__(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, H) -> (B, T, H); with a cache, x holds the T positions after the cached ones."""
        ...

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Draw fresh weights; `output_std` is for the projection back into the residual."""
        ...


def build_block(part: Any, config: ModelConfig) -> Any:
    """The module that `part.kind` stands for, built from its config and the model's.

    Raises: UserError for a kind that no table holds.
    """
    return look_up(BLOCKS, part.kind, seam="block")(part, config)
