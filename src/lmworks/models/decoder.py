"""The decoder: embedding, layers of (mixer, feed-forward), final norm, head. One forward for all.

Training, scoring, sampling and serving call the same code: without a cache all positions attend
causally, with one the new positions follow those of each slot. Weights are float32.

The head shares the embedding's weights when the config ties them: there is then no `lm_head`
module (a loader may still set one, such as a packed head over the same tensor).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.base import build_block
from lmworks.models.config import ModelConfig
from lmworks.models.initialization import INIT_STD, init_linear, residual_std
from lmworks.models.norms import RMSNorm

if TYPE_CHECKING:
    from lmworks.models.cache import CacheView, LayerCache


class DecoderLayer(nn.Module):
    """x + mixer(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mixer = build_block(config.mixer, config)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = build_block(config.feed_forward, config)

    def forward(self, x: torch.Tensor, cache: LayerCache | None = None) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        x = x + self.mixer(self.mixer_norm(x), cache)
        out: torch.Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


class Decoder(nn.Module):
    """input_ids (B, T) -> logits (B, T, V) float32.

    A new one holds arbitrary weights: call `reset_parameters` or load some.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head: nn.Module | None = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        cache: CacheView | None = None,
        last_only: bool = False,
    ) -> torch.Tensor:
        """Logits of the next token after each position.

        Args:
            input_ids: (B, T) int64.
            cache: slots that the rows continue; their lengths grow by T. No gradient flows then.
            last_only: compute the head for the last position only, as sampling needs.
        Returns: (B, T, V), or (B, 1, V) with `last_only`, float32.
        Raises: UserError for an id outside the vocabulary or a row that outgrows the cache.
        """
        hidden = self.hidden_states(input_ids, cache)
        return self.logits(hidden[:, -1:] if last_only else hidden)

    def hidden_states(
        self, input_ids: torch.Tensor, cache: CacheView | None = None
    ) -> torch.Tensor:
        """(B, T) -> (B, T, H) after the final norm; arguments and errors as in `forward`."""
        if cache is None:
            return self._run(input_ids)
        step = cache.begin(*input_ids.shape)
        with torch.no_grad():
            hidden = self._run(input_ids, [step.layer(i) for i in range(len(self.layers))])
        step.commit()
        return hidden

    def _run(self, input_ids: torch.Tensor, caches: list[LayerCache] | None = None) -> torch.Tensor:
        x = self._embed(input_ids)
        for index, layer in enumerate(self.layers):
            x = layer(x, None if caches is None else caches[index])
        hidden: torch.Tensor = self.norm(x)
        return hidden

    def _embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        try:
            embedded: torch.Tensor = self.embed_tokens(input_ids)
        except IndexError as error:
            low, high = int(input_ids.min()), int(input_ids.max())
            raise UserError(
                f"token ids from {low} to {high} do not fit the vocabulary of "
                f"{self.config.vocab_size}: is this the model's own tokenizer?"
            ) from error
        return embedded

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., H) after the final norm -> (..., V)."""
        if self.lm_head is None:
            return F.linear(hidden, cast(torch.Tensor, self.embed_tokens.weight))
        logits: torch.Tensor = self.lm_head(hidden)
        return logits

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights; the same generator state gives the same weights.

        Normal with a spread of 0.02, projections into the residual divided by sqrt(2 layers).
        """
        nn.init.normal_(self.embed_tokens.weight, std=INIT_STD, generator=generator)
        output_std = residual_std(self.config.num_hidden_layers)
        for module in self.modules():
            if isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, DecoderLayer):
                module.mixer.reset_parameters(generator, output_std=output_std)
                module.feed_forward.reset_parameters(generator, output_std=output_std)
        if isinstance(self.lm_head, nn.Linear):
            init_linear(self.lm_head, generator, INIT_STD)
