"""Two encoders that are trained together: one fills gaps, the other finds what was filled in.

They share the tables of their embeddings (tokens, positions, segments), so the generator may be
narrower only behind them. Source: Clark et al. 2020 (ELECTRA), arXiv 2003.10555, section 3.2.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.config import LMHeadConfig, ModelConfig, ValueHeadConfig
from lmworks.models.model import Model

_SHARED = ("embed_tokens", "embed_positions", "embed_types")


class GeneratorDiscriminator(nn.Module):
    """`generator` gives logits (B, T, V), `discriminator` one number for each token (B, T).

    Raises: UserError for heads that do not, or embeddings of different sizes.
    """

    def __init__(self, generator: ModelConfig, discriminator: ModelConfig) -> None:
        super().__init__()
        head = discriminator.head
        if not isinstance(generator.head, LMHeadConfig) or not isinstance(head, ValueHeadConfig):
            raise UserError("a generator ends in a vocabulary, a discriminator in one number each")
        if head.pooling is not None:
            raise UserError("a discriminator judges every token: its head pools nothing")
        sizes = [(c.vocab_size, c.embedding_size, c.positions) for c in (generator, discriminator)]
        if sizes[0] != sizes[1]:
            raise UserError(
                "generator and discriminator share their embeddings, which differ in size: "
                f"{sizes[0]} and {sizes[1]}"
            )
        self.generator, self.discriminator = Model(generator), Model(discriminator)
        for name in _SHARED:
            setattr(self.generator, name, getattr(self.discriminator, name))

    @property
    def layers(self) -> list[nn.Module]:
        """Those of both."""
        return [*self.generator.layers, *self.discriminator.layers]

    @property
    def checkpoint_layers(self) -> bool:
        """Whether layers are computed again for their gradient; set for both."""
        return self.discriminator.checkpoint_layers

    @checkpoint_layers.setter
    def checkpoint_layers(self, value: bool) -> None:
        self.generator.checkpoint_layers = self.discriminator.checkpoint_layers = value

    def auxiliary_loss(self) -> torch.Tensor | None:
        """What the blocks of both add to the loss in training, or None."""
        losses = [model.auxiliary_loss() for model in (self.generator, self.discriminator)]
        found = [loss for loss in losses if loss is not None]
        return cast(torch.Tensor, sum(found)) if found else None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights for both; the same generator state gives the same weights."""
        self.generator.reset_parameters(generator)
        self.discriminator.reset_parameters(generator)
