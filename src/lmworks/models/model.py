"""The model: embedding, layers of (mixer, feed-forward), norm, head. One forward for all.

Training, scoring, sampling and serving call the same code: without a cache all positions are
there at once, with one the new positions follow those of each slot. Weights are float32.

A decoder, an encoder and an encoder-decoder differ in their configs alone: whether attention is
causal, which head they end in, and whether there is an encoder to look across to. The head shares
the embedding's weights when the config ties them: there is then no `lm_head` module (a loader may
still set one, such as a packed head over the same tensor).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.config import LMHeadConfig, ModelConfig
from lmworks.models.context import Context, Encoded
from lmworks.models.feed_forward import activation
from lmworks.models.initialization import INIT_STD, init_linear, residual_std
from lmworks.models.layer import Layer
from lmworks.models.norms import LayerNorm, RMSNorm, build_norm
from lmworks.models.positions import build_positions

if TYPE_CHECKING:
    from lmworks.models.cache import CacheView

Record = Callable[[str, torch.Tensor], None]


class Model(nn.Module):
    """input_ids (B, T) -> logits (B, T, V) float32, or hidden states where there is no head.

    A new one holds arbitrary weights: call `reset_parameters` or load some.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden, embedding, positions = config.hidden_size, config.embedding, config.positions
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden)
        self.embed_types = None
        if embedding.type_vocab_size:
            self.embed_types = nn.Embedding(embedding.type_vocab_size, hidden)
        self.embed_positions = build_positions(positions, hidden) if positions else None
        self.embed_norm = build_norm(embedding.norm, hidden) if embedding.norm else None
        self.encoder = Model(config.encoder) if config.encoder else None
        self.layers = nn.ModuleList(Layer(layer, config) for layer in config.layers)
        self.norm = build_norm(config.norm, hidden) if config.norm else None
        self.head = _head_transform(config)
        self.lm_head: nn.Module | None = None
        if isinstance(config.head, LMHeadConfig) and not config.tie_word_embeddings:
            self.lm_head = nn.Linear(hidden, config.vocab_size, bias=config.head.bias)

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        cache: CacheView | None = None,
        last_only: bool = False,
        **inputs: Any,
    ) -> torch.Tensor:
        """Logits of the next token after each position, or of each position if not causal.

        Args:
            input_ids: (B, T) int64.
            cache: slots that the rows continue; their lengths grow by T. No gradient flows then.
            last_only: compute the head for the last position only, as sampling needs.
            inputs: what else `hidden_states` takes.
        Returns: (B, T, V), or (B, 1, V) with `last_only`, float32.
        Raises: UserError for an id outside the vocabulary or a row that outgrows the cache.
        """
        hidden = self.hidden_states(input_ids, cache, **inputs)
        return self.logits(hidden[:, -1:] if last_only else hidden)

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        cache: CacheView | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        encoded: Encoded | None = None,
        record: Record | None = None,
    ) -> torch.Tensor:
        """(B, T) -> (B, T, H) after the final norm; errors as in `forward`.

        Args:
            attention_mask: (B, T), nonzero where a token is; padding stands on the right.
            token_type_ids: (B, T) segment of each token, zero by default.
            encoded: what `encode` gave, for an encoder-decoder.
            record: called with (operation, tensor) for each named operation.
        """
        padding = None
        if attention_mask is not None and not bool(attention_mask.all()):
            padding = attention_mask.bool()
        context = Context(padding=padding, encoded=encoded, record=record)
        if cache is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            return self._run(self._embed(input_ids, positions, token_type_ids), context)
        step = cache.begin(*input_ids.shape)
        with torch.no_grad():
            x = self._embed(input_ids, step.positions, token_type_ids)
            caches = [step.layer(i) for i in range(len(self.layers))]
            hidden = self._run(x, context, caches)
        step.commit()
        return hidden

    def encode(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> Encoded:
        """The encoder's states, for `encoded`. Raises: UserError for a model without an encoder."""
        if self.encoder is None:
            raise UserError("this model has no encoder")
        states = self.encoder.hidden_states(input_ids, attention_mask=attention_mask)
        return Encoded(states, None if attention_mask is None else attention_mask.bool())

    def _run(
        self, x: torch.Tensor, context: Context, caches: list[Any] | None = None
    ) -> torch.Tensor:
        if context.record is not None:
            context.record("embedding", x)
        for index, layer in enumerate(self.layers):
            cache = None if caches is None else caches[index]
            x = layer(x, dataclasses.replace(context, cache=cache, layer=index))
        if self.norm is not None:
            x = self.norm(x)
            if context.record is not None:
                context.record("norm", x)
        return x

    def _embed(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        token_type_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        try:
            x: torch.Tensor = self.embed_tokens(input_ids)
        except IndexError as error:
            low, high = int(input_ids.min()), int(input_ids.max())
            raise UserError(
                f"token ids from {low} to {high} do not fit the vocabulary of "
                f"{self.config.vocab_size}: is this the model's own tokenizer?"
            ) from error
        if self.config.embedding.scale != 1:
            x = x * self.config.embedding.scale
        if self.embed_types is not None:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.embed_types(types)
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        return x if self.embed_norm is None else self.embed_norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., H) after the final norm -> (..., V), or `hidden` itself where there is no head."""
        head = self.config.head
        if head is None:
            return hidden
        if self.head is not None:
            hidden = self.head(hidden)
        if head.scale != 1:
            hidden = hidden * head.scale
        if self.lm_head is None:
            bias = self.head.bias if self.head is not None else None
            logits = F.linear(hidden, cast(torch.Tensor, self.embed_tokens.weight), bias)
        else:
            logits = self.lm_head(hidden)
        if head.softcap is not None:
            logits = torch.tanh(logits / head.softcap) * head.softcap
        return logits

    def auxiliary_loss(self) -> torch.Tensor | None:
        """The sum of what blocks add to the loss in training (routers), or None."""
        losses = [getattr(module, "auxiliary_loss", None) for module in self.layers.modules()]
        found = [loss for loss in losses if isinstance(loss, torch.Tensor)]
        return torch.stack(found).sum() if found else None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights; the same generator state gives the same weights.

        Normal with a spread of 0.02, projections into the residual divided by sqrt(2 layers).
        """
        for table in (self.embed_tokens, self.embed_types):
            if table is not None:
                nn.init.normal_(table.weight, std=INIT_STD, generator=generator)
        if self.embed_positions is not None:
            self.embed_positions.reset_parameters(generator)
        if self.encoder is not None:
            self.encoder.reset_parameters(generator)
        for module in self.modules():
            if isinstance(module, RMSNorm | LayerNorm):
                module.reset_parameters()
        output_std = residual_std(self.config.num_hidden_layers)
        for layer in self.layers:
            cast(Layer, layer).reset_parameters(generator, output_std=output_std)
        if self.head is not None:
            self.head.reset_parameters(generator)
        if isinstance(self.lm_head, nn.Linear):
            init_linear(self.lm_head, generator, INIT_STD)


class HeadTransform(nn.Module):
    """What stands before a tied or masked-model head: a square layer, its norm, the head's bias."""

    def __init__(self, config: LMHeadConfig, model: ModelConfig) -> None:
        super().__init__()
        hidden = model.hidden_size
        self.dense = nn.Linear(hidden, hidden) if config.transform else None
        self.activation = activation(config.transform) if config.transform else None
        norm = config.transform_norm
        self.norm = build_norm(norm, hidden) if norm else None
        self.bias = None
        if config.bias and model.tie_word_embeddings:
            self.bias = nn.Parameter(torch.zeros(model.vocab_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., H) -> (..., H)."""
        if self.dense is not None and self.activation is not None:
            x = self.activation(self.dense(x))
        return x if self.norm is None else self.norm(x)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Normal weights, zero biases."""
        if self.dense is not None:
            init_linear(self.dense, generator, INIT_STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def _head_transform(config: ModelConfig) -> HeadTransform | None:
    head = config.head
    if head is None or not (head.transform or (head.bias and config.tie_word_embeddings)):
        return None
    return HeadTransform(head, config)
