"""Several models that read the same tokens as one model that generates.

An ensemble is called as a model is, with a cache. That cache holds the layers of all members, one
behind the other, in pages that they share: a sequence has one table of pages, so whatever is built
on pages (beginnings that are used again, requests that leave and come back, guesses that are taken
back) holds for ensembles without a word about them. Each member sees its own layers of it.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.cache import CacheView, KVCache
from lmworks.models.config import ModelConfig
from lmworks.models.ensemble_spec import EnsembleSpec

if TYPE_CHECKING:
    from lmworks.models.model import Model


def combined_config(configs: Sequence[ModelConfig]) -> ModelConfig:
    """The config that a cache for all of them is made of: the first's, with all their layers.

    Raises: UserError for layers whose states would not be laid out as their own model's are.
    """
    together = side_by_side(configs)
    for config in configs:
        if any(layer.kept(config) != layer.kept(together) for layer in config.layers):
            raise UserError(
                "models with recurrent layers can be members only of ensembles of one hidden size"
            )
    return together


def side_by_side(configs: Sequence[ModelConfig]) -> ModelConfig:
    """The first's config with the layers of all, and the shortest vocabulary and context."""
    return dataclasses.replace(
        configs[0],
        vocab_size=min(config.vocab_size for config in configs),
        layers=tuple(layer for config in configs for layer in config.layers),
        max_position_embeddings=min(config.max_position_embeddings for config in configs),
    )


def combined(logits: Sequence[torch.Tensor], spec: EnsembleSpec) -> torch.Tensor:
    """Logits of each member (..., V) -> those of the ensemble, (..., V) float32.

    See `ensemble_spec`; what `contrastive` leaves out is -inf.
    """
    logprobs = [member.float().log_softmax(-1) for member in logits]
    if spec.combine == "contrastive":
        first, second = logprobs
        left = first - first.amax(-1, keepdim=True)
        implausible = left < torch.tensor(spec.plausible).log()
        scores = (1 + spec.strength) * first - spec.strength * second
        return scores.masked_fill(implausible, -torch.inf)
    weights = spec.weights
    if spec.combine == "logprobs":
        return torch.stack([w * logprob for w, logprob in zip(weights, logprobs) if w]).sum(0)
    parts = [torch.tensor(w).log() + logprob for w, logprob in zip(weights, logprobs) if w]
    return torch.stack(parts).logsumexp(0)


class EnsembleModel(nn.Module):
    """Members of one vocabulary; takes what `Model.forward` takes for generating.

    Attributes:
        config: see `combined_config`.
    """

    def __init__(self, members: Sequence[Model], spec: EnsembleSpec) -> None:
        super().__init__()
        self.spec = spec
        self.config = combined_config([member.config for member in members])
        self.members = nn.ModuleList(members)
        self._parts: weakref.WeakKeyDictionary[KVCache, list[KVCache]] = weakref.WeakKeyDictionary()

    def forward(
        self, input_ids: torch.Tensor, *, cache: CacheView | None = None, last_only: bool = False
    ) -> torch.Tensor:
        """(B, T) -> (B, T or 1, V), see `Model.forward`; one cache for all members."""
        size = self.config.vocab_size
        if cache is None:
            found = [m(input_ids, last_only=last_only)[..., :size] for m in self.members]
            return combined(found, self.spec)
        whole, num_new = cache.cache, input_ids.shape[1]
        cache.check(input_ids.shape[0], num_new)
        # Pages for the layers of all, before any member finds that some are missing.
        whole.reserve(cache.slots, num_new)
        found = []
        for member, part in zip(self.members, self._parts_of(whole), strict=True):
            for counts in ("lengths", "regimes"):
                setattr(part, counts, list(getattr(whole, counts)))
            logits = member(input_ids, cache=part.view(cache.slots), last_only=last_only)
            found.append(logits[..., :size])
        for slot in cache.slots:
            whole.regimes[slot] = whole.regime_after(slot, num_new)
            whole.lengths[slot] += num_new
        return combined(found, self.spec)

    def _parts_of(self, whole: KVCache) -> list[KVCache]:
        """Each member's layers of a cache, over the same pages and tables."""
        if whole not in self._parts:
            first, parts = 0, []
            for member in self.members:
                end = first + len(member.config.layers)  # type: ignore[union-attr, arg-type]
                part = copy.copy(whole)
                part.growing, part.states = whole.growing[first:end], whole.states[first:end]
                part.rings = whole.rings[first:end]
                part.all_regimes = whole.all_regimes.of_layers(first, end)
                part.make_room = None
                parts.append(part)
                first = end
            self._parts[whole] = parts
        return self._parts[whole]
