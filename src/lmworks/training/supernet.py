"""A model that is many: every layer holds all kinds of layers, a path chooses one in each.

Training draws a path for every step, so that all of them are trained together, once; the loss of
a path afterwards says how good a model of that pattern is likely to be, against the others.

Source: Guo et al. 2019, Single path one-shot neural architecture search, arXiv 1904.00420.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from lmworks.models.config.patterns import Sizes, decoder_config, layer_of, places
from lmworks.models.context import Context
from lmworks.models.layer import Layer
from lmworks.models.model import Model

Path = tuple[int, ...]  # for each layer the number of its word


class ChoiceLayer(nn.Module):
    """All kinds of layers at one place; `choice` is the one that computes."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.candidates = nn.ModuleList(layers)
        self.choice = 0

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, H) -> (B, T, H), by the chosen layer."""
        out: torch.Tensor = self.candidates[self.choice](x, context)
        return out

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Draw fresh weights of all."""
        for layer in self.candidates:
            layer.reset_parameters(generator, output_std=output_std)  # type: ignore[operator]


class Supernet:
    """A model over `words` at every one of `depth` places.

    `model` is an ordinary `Model` but for its layers; `take` sets the path that it computes.
    """

    def __init__(
        self, words: Sequence[str], *, depth: int, vocab_size: int, sizes: Sizes, seed: int
    ) -> None:
        self.words, self.depth = tuple(words), depth
        config = decoder_config(words[0], depth=depth, vocab_size=vocab_size, sizes=sizes)
        self.model = Model(config)
        self.model.layers = nn.ModuleList(
            ChoiceLayer([Layer(layer_of(word, at), config) for word in words])
            for at in places(sizes, depth)
        )
        self.model.reset_parameters(torch.Generator().manual_seed(seed))

    def take(self, path: Path) -> None:
        """Compute with this path from now on."""
        for layer, choice in zip(self.model.layers, path, strict=True):
            layer.choice = choice  # type: ignore[assignment]

    def drawn(self, step: int, seed: int) -> Path:
        """The path of a training step: each word equally likely at each place."""
        random = np.random.default_rng([seed, step])
        return tuple(int(i) for i in random.integers(0, len(self.words), self.depth))
