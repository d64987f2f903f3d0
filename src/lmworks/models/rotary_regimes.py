"""By which rotary frequencies the keys of a cache are turned, where the length decides that.

The bounds of a model's layers (`RoPEConfig.bounds`) divide all lengths into regimes: in each, a
position's key is turned the same way however long the sequence is. A slot of the cache is in one
regime at a time. A sequence that passes a bound has its keys turned anew in place, which is what
turning them by the new frequencies in the first place would have given, to rounding.
"""

from __future__ import annotations

import bisect
import copy
from typing import TYPE_CHECKING, Any

import torch

from lmworks.models.cache_types import decode, encode
from lmworks.models.pages import PAGE
from lmworks.models.positions import Rotary, shared_rotary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmworks.models.config import ModelConfig, RoPEConfig


class Regimes:
    """The regimes of a model's layers together.

    Attributes:
        bounds: the longest length of each but the last, ascending.
        grows: whether some layer has frequencies for every length; its keys are kept unturned.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._rotaries: list[Rotary | None] = []
        bounds = set[int]()
        self.grows = False
        for layer in config.layers:
            mixer: Any = layer.mixer
            rope: RoPEConfig | None = getattr(mixer, "rope", None)
            self._rotaries.append(None)
            if rope is None or not rope.depends_on_length:
                continue
            self.grows = self.grows or rope.grows
            if rope.bounds:
                bounds.update(rope.bounds)
                self._rotaries[-1] = shared_rotary(rope, rope.rotary_dim(mixer.head_dim))
        self.bounds = tuple(sorted(bounds))

    def of_layers(self, first: int, end: int) -> Regimes:
        """The same regimes, with these layers' keys alone to turn."""
        part = copy.copy(self)
        part._rotaries = self._rotaries[first:end]
        return part

    def of(self, length: int) -> int:
        """The regime of a sequence of `length`, from 0."""
        return bisect.bisect_left(self.bounds, length)

    def longest(self, regime: int) -> float:
        """The longest sequence of a regime."""
        return self.bounds[regime] if regime < len(self.bounds) else float("inf")

    def _length(self, regime: int) -> int:
        """One that is of a regime: its shortest."""
        return self.bounds[regime - 1] + 1 if regime else 1

    def turn(
        self,
        growing: Sequence[Mapping[str, torch.Tensor]],
        rings: Sequence[int | None],
        pages: Sequence[int],
        slot: int,
        length: int,
        regimes: tuple[int, int],
    ) -> None:
        """Turn the keys of a sequence of `length` from one regime to another, where they lie.

        Args:
            growing, rings: of a `KVCache`.
            pages: of the sequence, none of them used by others.
        """
        lengths = (self._length(regimes[0]), self._length(regimes[1]))
        for rotary, layer, ring in zip(self._rotaries, growing, rings):
            if rotary is None:
                continue
            keys = layer["keys"]
            if ring is None:
                places = torch.tensor(list(pages)[: -(-length // PAGE)], device=keys.device)
                positions = torch.arange(len(places) * PAGE, device=keys.device)
                positions = positions.view(-1, 1, PAGE)
            else:
                places = torch.tensor([slot], device=keys.device)
                last, at = length - 1, torch.arange(ring, device=keys.device)
                positions = (last - (last - at) % ring).clamp(min=0).view(1, 1, ring)
            turned = rotary.turned_anew(decode(keys[places]), positions, lengths)
            keys[places] = encode(turned, keys.dtype)
