"""One layer: a mixer, perhaps cross attention, a feed-forward, and where their norms stand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lmworks.models.attention import CrossAttention
from lmworks.models.base import build_block
from lmworks.models.config import LayerConfig, ModelConfig
from lmworks.models.context import Context
from lmworks.models.documents import Bucket
from lmworks.models.norms import build_norm


class Layer(nn.Module):
    """(B, T, H) -> (B, T, H); see `LayerConfig` for the placements of the norms."""

    def __init__(self, config: LayerConfig, model: ModelConfig) -> None:
        super().__init__()
        self.placement = config.placement
        self._add("mixer", build_block(config.mixer, model), config, model)
        if config.cross_attention is not None:
            across = CrossAttention(config.cross_attention, model)
            self._add("cross_attention", across, config, model)
        if config.feed_forward is not None:
            self._add("feed_forward", build_block(config.feed_forward, model), config, model)
        self.parts = [name for name in _PARTS if hasattr(self, name)]
        blocks = {"mixer": config.mixer, "feed_forward": config.feed_forward}
        self._apart = {name for name, block in blocks.items() if block and block.reads_apart}

    def _add(self, name: str, block: nn.Module, config: LayerConfig, model: ModelConfig) -> None:
        if self.placement != "parallel_shared" or name == "mixer":
            setattr(self, f"{name}_norm", build_norm(config.norm, model.hidden_size))
        setattr(self, name, block)
        if self.placement == "sandwich":
            setattr(self, f"{name}_output_norm", build_norm(config.norm, model.hidden_size))

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """See the class."""
        if self.placement == "parallel":
            x = x + sum(self._update(name, x, context) for name in self.parts)
            context.note("residual", x)
            return x
        if self.placement == "parallel_shared":
            return self._beside(x, context)
        for name in self.parts:
            x = x + self._update(name, x, context)
            if self.placement == "post":
                x = getattr(self, f"{name}_norm")(x)
            context.note(f"{name}_residual", x)
        return x

    def _beside(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """Mixer and feed-forward of the same normed x."""
        norm: Any = self.mixer_norm
        normed = norm(x)
        context.note("mixer_norm", normed)
        for name in self.parts:
            update = self._call(name, normed, context)
            context.note(name, update)
            x = x + update
        context.note("residual", x)
        return x

    def _update(self, name: str, x: torch.Tensor, context: Context) -> torch.Tensor:
        """What the part called `name` adds to x."""
        norm: Any = getattr(self, f"{name}_norm")
        if self.placement not in ("post", "output"):
            x = norm(x)
            context.note(f"{name}_norm", x)
        update = self._call(name, x, context)
        context.note(name, update)
        if self.placement == "output":
            update = norm(update)
        elif self.placement == "sandwich":
            update = getattr(self, f"{name}_output_norm")(update)
        return update

    def _call(self, name: str, x: torch.Tensor, context: Context) -> torch.Tensor:
        """The part itself; of packed rows, document by document if it reads them so."""
        block: Any = getattr(self, name)
        if name in self._apart and context.apart is not None:

            def read(bucket: Bucket, rows: torch.Tensor) -> torch.Tensor:
                found: torch.Tensor = block(rows, context.of_bucket(bucket))
                return found

            return context.apart.apart(read, x, padded=True)
        update: torch.Tensor = block(x, context)
        return update

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Draw fresh weights of every part; norms are the model's to reset."""
        for name in self.parts:
            getattr(self, name).reset_parameters(generator, output_std=output_std)


_PARTS = ("mixer", "cross_attention", "feed_forward")
