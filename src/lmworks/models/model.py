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
from torch.utils.checkpoint import checkpoint

from lmworks.core.errors import UserError
from lmworks.models.base import build_block
from lmworks.models.config import AttentionConfig, BlockConfig, LMHeadConfig, ModelConfig
from lmworks.models.context import Context, Encoded
from lmworks.models.documents import Documents
from lmworks.models.fused_step import fused_states
from lmworks.models.heads import HeadTransform, PooledHead, build_head
from lmworks.models.initialization import INIT_STD, init_linear, residual_std
from lmworks.models.layer import Layer
from lmworks.models.norms import LayerNorm, RMSNorm, build_norm
from lmworks.models.positions import RelativeBias, build_positions

if TYPE_CHECKING:
    from lmworks.models.cache import CacheView

Record = Callable[[str, torch.Tensor], None]


class Model(nn.Module):
    """input_ids (B, T) -> logits (B, T, V) float32, or hidden states where there is no head.

    A pooled head gives one answer for each row instead: classes (B, C), a number (B,), a vector.
    A new one holds arbitrary weights: call `reset_parameters` or load some.

    Attributes:
        checkpoint_layers: keep only the input of each layer for the backward pass, and compute the
            layer once more there (Chen et al. 2016, arXiv 1604.06174).
    """

    model_type = ""  # the architecture that it was loaded as

    checkpoint_layers = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden, embedding, positions = config.hidden_size, config.embedding, config.positions
        size = config.embedding_size
        self.embed_inputs = build_block(config.inputs, config) if config.inputs else None
        if not embedding.shared and not config.inputs:
            self.embed_tokens = nn.Embedding(config.vocab_size, size)
        self.embed_types = None
        if embedding.type_vocab_size:
            self.embed_types = nn.Embedding(embedding.type_vocab_size, size)
        self.embed_positions = build_positions(positions, size) if positions else None
        self.embed_norm = build_norm(embedding.norm, size) if embedding.norm else None
        self.embed_proj = nn.Linear(size, hidden) if size != hidden else None
        self.relative_bias = None
        if config.relative_positions is not None:
            mixer = cast(AttentionConfig, config.layers[0].mixer)
            self.relative_bias = RelativeBias(config.relative_positions, mixer.num_attention_heads)
        self.encoder = Model(config.encoder) if config.encoder else None
        self.layers = nn.ModuleList(Layer(layer, config) for layer in config.layers)
        self.norm = build_norm(config.norm, hidden) if config.norm else None
        self.head = build_head(config)
        self.lm_head: nn.Module | None = None
        if isinstance(config.head, LMHeadConfig) and not config.tie_word_embeddings:
            self.lm_head = nn.Linear(size, config.vocab_size, bias=config.head.bias)

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
            input_ids: (B, T) int64; or rows of the embedding that were looked up before, (B, T, H);
                or the pixels or features that the config's `inputs` read.
            cache: slots that the rows continue; their lengths grow by T. No gradient flows then.
            last_only: compute the head for the last position only, as sampling needs.
            inputs: what else `hidden_states` takes.
        Returns: (B, T, V), or (B, 1, V) with `last_only`, float32; or what the head makes of it.
        Raises: UserError for an id outside the vocabulary or a row that outgrows the cache.
        """
        if cache is not None and not inputs:
            fused = fused_states(self, input_ids, cache, logits=True, last_only=last_only)
            if fused is not None:
                return self._capped(cast(torch.Tensor, fused[1]))
        hidden = self.hidden_states(input_ids, cache, **inputs)
        if isinstance(self.head, PooledHead):
            pooled: torch.Tensor = self.head(hidden, inputs.get("attention_mask"), input_ids)
            return pooled
        return self.logits(hidden[:, -1:] if last_only else hidden)

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        cache: CacheView | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        global_attention_mask: torch.Tensor | None = None,
        nodes: torch.Tensor | None = None,
        encoded: Encoded | None = None,
        documents: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        visible: torch.Tensor | None = None,
        record: Record | None = None,
    ) -> torch.Tensor:
        """(B, T) -> (B, T, H) after the final norm; errors as in `forward`.

        Args:
            attention_mask: (B, T), nonzero where a token is; padding stands on the right.
            token_type_ids: (B, T) segment of each token, zero by default.
            global_attention_mask: (B, T), nonzero where a token is global (Longformer).
            nodes: (G, M) bool: the B rows are M texts of each of G graphs, its centre first; True
                where there is one (GraphFormers).
            encoded: what `encode` gave, for an encoder-decoder.
            documents: (B, T) int; tokens of a row with the same number are of one document, which
                is read as if it stood alone in a row.
            positions: (B, T) int64, where each token stands, by default one behind the other (in
                its document). Which comes first is still told by the order in the row.
            visible: (B, T, T) bool, True where token t may look at s, in place of "at those up to
                itself". Every token must see one.
            record: called with (operation, tensor) for each named operation.
        """
        self._check_told(cache, documents=documents, positions=positions, visible=visible)
        chosen = None if global_attention_mask is None else global_attention_mask.bool()
        context = Context(
            padding=_padding(attention_mask),
            global_tokens=chosen,
            nodes=_nodes(nodes, len(input_ids)),
            encoded=encoded,
            documents=None if documents is None else Documents(documents),
            positions=positions,
            visible=None if visible is None else visible.bool(),
            record=record,
        )
        if cache is None:
            rows = self._rows(input_ids)
            order = torch.arange(rows.shape[1], device=rows.device)
            places = order if context.places is None else context.places
            # Documents that are read apart have the distances of a whole row.
            apart = context.apart is not None and context.padding is None
            context = self._with_bias(context, order if apart else places)
            return self._run(self._embed(rows, places, token_type_ids), context)
        if record is None and attention_mask is None and token_type_ids is None:
            fused = fused_states(self, input_ids, cache)
            if fused is not None:
                return fused[0]
        step = cache.begin(*input_ids.shape[:2])
        with torch.no_grad():
            x = self._embed(self._rows(input_ids), step.positions, token_type_ids)
            caches = [step.layer(i) for i in range(len(self.layers))]
            bias = self.bias(caches[0].positions, step.total)
            context = dataclasses.replace(context, bias=bias)
            hidden = self._run(x, context, caches)
        step.commit()
        return hidden

    def encode(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> Encoded:
        """What the encoder makes of (B, S) ids, for `encoded`: `model(ids, encoded=encoded)`.

        Args:
            input_ids: or whatever else the encoder's embedding takes.
            attention_mask: (B, S), nonzero where a token is; padding stands on the right.
        Raises: UserError for a model without an encoder.
        """
        if self.encoder is None:
            raise UserError("this model has no encoder")
        rows = self._rows(input_ids) if self.encoder.config.embedding.shared else input_ids
        states = self.encoder.hidden_states(rows, attention_mask=attention_mask)
        return Encoded(states, _padding(attention_mask))

    def _run(
        self, x: torch.Tensor, context: Context, caches: list[Any] | None = None
    ) -> torch.Tensor:
        if context.record is not None:
            context.record("embedding", x)
        again = self.checkpoint_layers and self.training and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers):
            cache = None if caches is None else caches[index]
            here = dataclasses.replace(context, cache=cache, layer=index)
            x = checkpoint(layer, x, here, use_reentrant=False) if again else layer(x, here)
        if self.norm is not None:
            x = self.norm(x)
            if context.record is not None:
                context.record("norm", x)
        return x

    def embed(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, T, H): what the first layer gets. Raises: UserError for an unknown id."""
        return self._embed(self._rows(input_ids), positions, None)

    def bias(
        self, positions: torch.Tensor, num_seen: int, seen: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """What is added to the scores of every attention, (1 or B, N, T, S), or None.

        Args:
            positions: (1 or B, T) of the queries.
            num_seen: S, the keys from position 0 on.
            seen: (1 or B, S) of the keys, if they stand elsewhere.
        """
        if self.relative_bias is None:
            return None
        return cast(torch.Tensor, self.relative_bias(positions, num_seen, seen))

    def _with_bias(self, context: Context, positions: torch.Tensor) -> Context:
        positions = positions if positions.dim() == 2 else positions[None]
        bias = self.bias(positions, positions.shape[1], positions)
        return context if bias is None else dataclasses.replace(context, bias=bias)

    def _check_told(self, cache: CacheView | None, **told: torch.Tensor | None) -> None:
        """Raises: UserError for what a layer can't honour, or that does not fit a cache."""
        given = {name: value for name, value in told.items() if value is not None}
        if not given:
            return
        names = " and ".join(given)
        if cache is not None:
            raise UserError(f"{names}: a cache goes on with plain rows; leave it out")
        if "documents" in given and self.encoder is not None:
            raise UserError("documents: a decoder that looks at an encoder reads one for each row")
        for index, layer in enumerate(self.config.layers):
            for part in filter(None, (layer.mixer, layer.feed_forward)):
                if missing := given.keys() - part.honours():
                    names = " and ".join(sorted(missing))
                    raise UserError(f"layer {index}: {words_for(part)} can't honour {names}")
        visible = given.get("visible")
        if visible is not None and not bool(visible.any(-1).all()):
            row, place = (~visible.bool().any(-1)).nonzero()[0].tolist()
            raise UserError(f"visible: token {place} of row {row} may look at nothing")

    def _rows(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The tokens' rows of the table, (B, T, H), or what else the config reads."""
        if self.embed_inputs is not None:
            return cast(torch.Tensor, self.embed_inputs(input_ids))
        if input_ids.is_floating_point():
            return input_ids
        try:
            return cast(torch.Tensor, self.embed_tokens(input_ids))
        except IndexError as error:
            low, high = int(input_ids.min()), int(input_ids.max())
            raise UserError(
                f"token ids from {low} to {high} do not fit the vocabulary of "
                f"{self.config.vocab_size}: is this the model's own tokenizer?"
            ) from error

    def _embed(
        self, x: torch.Tensor, positions: torch.Tensor, token_type_ids: torch.Tensor | None
    ) -> torch.Tensor:
        if self.config.embedding.scale != 1:
            x = x * self.config.embedding.scale
        if self.embed_types is not None:
            types = torch.zeros_like(positions) if token_type_ids is None else token_type_ids
            x = x + self._types(types)
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        return x if self.embed_proj is None else self.embed_proj(x)

    def _types(self, token_type_ids: torch.Tensor) -> torch.Tensor:
        table = cast(nn.Embedding, self.embed_types)
        low, high = int(token_type_ids.min()), int(token_type_ids.max())
        if low < 0 or high >= table.num_embeddings:
            raise UserError(
                f"token types from {low} to {high} do not fit the {table.num_embeddings} that "
                "the model knows"
            )
        return cast(torch.Tensor, table(token_type_ids))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., H) after the final norm -> (..., V), or `hidden` itself where there is no head."""
        head, transform = self.config.head, self.head
        if head is None:
            return hidden
        if not isinstance(head, LMHeadConfig):
            return cast(torch.Tensor, cast(PooledHead, transform)(hidden))
        if transform is not None:
            hidden = transform(hidden)
        if head.scale != 1:
            hidden = hidden * head.scale
        if self.lm_head is None:
            bias = transform.bias if isinstance(transform, HeadTransform) else None
            logits = F.linear(hidden, cast(torch.Tensor, self.embed_tokens.weight), bias)
        else:
            logits = self.lm_head(hidden)
        return self._capped(logits)

    def _capped(self, logits: torch.Tensor) -> torch.Tensor:
        softcap = cast(LMHeadConfig, self.config.head).softcap
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    def auxiliary_loss(self) -> torch.Tensor | None:
        """The sum of what blocks add to the loss in training (routers), or None."""
        losses = [getattr(module, "auxiliary_loss", None) for module in self.layers.modules()]
        found = [loss for loss in losses if isinstance(loss, torch.Tensor)]
        return torch.stack(found).sum() if found else None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights; the same generator state gives the same weights.

        Normal with a spread of 0.02, projections into the residual divided by sqrt(2 layers).
        """
        for table in (getattr(self, "embed_tokens", None), self.embed_types):
            if table is not None:
                nn.init.normal_(table.weight, std=INIT_STD, generator=generator)
        if self.embed_proj is not None:
            init_linear(self.embed_proj, generator, INIT_STD)
        for part in (self.embed_inputs, self.embed_positions, self.relative_bias, self.encoder):
            if part is not None:
                part.reset_parameters(generator)
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


def words_for(part: BlockConfig) -> str:
    """What an error calls a block."""
    pattern = getattr(part, "pattern", None)
    return f"{part.kind} with the pattern {pattern.kind}" if pattern else part.kind


def _padding(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """True where a token is; None where there is nothing else."""
    if attention_mask is None or bool(attention_mask.all()):
        return None
    return attention_mask.bool()


def _nodes(nodes: torch.Tensor | None, num_rows: int) -> torch.Tensor | None:
    """Raises: UserError for graphs that are not those of the rows, or without a centre."""
    if nodes is None:
        return None
    if nodes.dim() != 2 or nodes.numel() != num_rows:
        raise UserError(f"nodes of shape {tuple(nodes.shape)} do not fit {num_rows} texts")
    if not bool(nodes[:, 0].all()):
        raise UserError("a graph's first text is its centre: it can't be missing")
    return nodes.bool()
