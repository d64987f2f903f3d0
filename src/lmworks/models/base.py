"""The protocols of the blocks, and the table that leads from a config's `kind` to its block.

A decoder layer is a mixer (moves information between positions) and a feed-forward (works on
each position). A new one is a config type with a `kind`, one file with the module, and one line
here; other packages add theirs through the entry-point group `lmworks.block`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from lmworks.core.tables import look_up

if TYPE_CHECKING:
    import torch

    from lmworks.models.cache import LayerCache
    from lmworks.models.config import ModelConfig

BLOCKS = {
    "attention": "lmworks.models.attention:Attention",
    "swiglu": "lmworks.models.feed_forward:SwiGLU",
}


class Mixer(Protocol):
    """Built as `Mixer(config.mixer, config)`. Normed hidden states in, update out."""

    def __call__(self, x: torch.Tensor, cache: LayerCache | None = None) -> torch.Tensor:
        """(B, T, H) -> (B, T, H); with a cache, x holds the T positions after the cached ones."""
        ...

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Draw fresh weights; `output_std` is for the projection back into the residual."""
        ...


class FeedForward(Protocol):
    """Built as `FeedForward(config.feed_forward, config)`. Works on each position alone."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        ...

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """As in `Mixer`."""
        ...


def build_block(part: Any, config: ModelConfig) -> Any:
    """The module that `part.kind` stands for, built from its config and the model's.

    Raises: UserError for a kind that no table holds.
    """
    return look_up(BLOCKS, part.kind, seam="block")(part, config)
