"""What a model ends in, beside the plain matrix to its vocabulary.

`HeadTransform` stands before a language head; `PooledHead` makes one state of a sequence and then
classes, a number or a vector of it.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.models.config import (
    AttentionPooling,
    ClassHeadConfig,
    EmbeddingHeadConfig,
    FirstPooling,
    LastPooling,
    LMHeadConfig,
    MeanPooling,
    ModelConfig,
    PooledHeadConfig,
    Pooling,
    TokenPooling,
    ValueHeadConfig,
)
from lmworks.models.context import Context
from lmworks.models.feed_forward import MLP, activation
from lmworks.models.initialization import INIT_STD, init_linear
from lmworks.models.norms import build_norm


class HeadTransform(nn.Module):
    """What stands before a tied or masked-model head: a square layer, its norm, the head's bias."""

    def __init__(self, config: LMHeadConfig, model: ModelConfig) -> None:
        super().__init__()
        size = model.embedding_size
        self.dense = nn.Linear(model.hidden_size, size) if config.transform else None
        self.activation = activation(config.transform) if config.transform else None
        norm = config.transform_norm
        self.norm = build_norm(norm, size) if norm else None
        self.bias = None
        if config.bias and model.tie_word_embeddings:
            self.bias = nn.Parameter(torch.zeros(model.vocab_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., H) -> (..., embedding size)."""
        if self.dense is not None and self.activation is not None:
            x = self.activation(self.dense(x))
        return x if self.norm is None else self.norm(x)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Normal weights, zero biases."""
        if self.dense is not None:
            init_linear(self.dense, generator, INIT_STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class PooledHead(nn.Module):
    """States (B, T, H) -> classes (B, C), a number (B,), or a vector (B, E); see the configs.

    Without a pooling there is one of them for each position: (B, T, C), (B, T).
    """

    def __init__(self, config: PooledHeadConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden = model.hidden_size
        self.pooler: AttentionPool | None = None
        if isinstance(config.pooling, AttentionPooling):
            self.pooler = AttentionPool(config.pooling, model)
        transform = None if isinstance(config, EmbeddingHeadConfig) else config.transform
        self.dense = nn.Linear(hidden, hidden) if transform else None
        self.activation = activation(transform) if transform else None
        size = _output_size(config)
        self.out_proj = None if size is None else nn.Linear(hidden, size, bias=config.bias)

    def forward(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See the class; mask and ids (B, T) are what the states came from."""
        if self.pooler is not None:
            x = self.pooler(hidden)
        else:
            x = pool(hidden, self.config.pooling, attention_mask, input_ids)
        if self.dense is not None and self.activation is not None:
            x = self.activation(self.dense(x))
        if self.out_proj is not None:
            x = self.out_proj(x)
        if isinstance(self.config, ValueHeadConfig):
            return x.squeeze(-1)
        normalize = isinstance(self.config, EmbeddingHeadConfig) and self.config.normalize
        return F.normalize(x, dim=-1) if normalize else x

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Normal weights, zero biases."""
        if self.pooler is not None:
            self.pooler.reset_parameters(generator)
        for linear in (self.dense, self.out_proj):
            if linear is not None:
                init_linear(linear, generator, INIT_STD)


def _output_size(config: PooledHeadConfig) -> int | None:
    if isinstance(config, ClassHeadConfig):
        return config.num_classes
    return 1 if isinstance(config, ValueHeadConfig) else config.size


def pool(
    hidden: torch.Tensor,
    pooling: Pooling | None,
    attention_mask: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """One state (B, H) of each sequence's (B, T, H), by a pooling without weights.

    Args:
        pooling: None leaves the states as they are.
        attention_mask: (B, T), nonzero where a token is; None where all are.
        input_ids: (B, T), which `TokenPooling` looks through.
    """
    if pooling is None:
        return hidden
    if isinstance(pooling, FirstPooling):
        return hidden[:, 0]
    if isinstance(pooling, MeanPooling):
        return _mean(hidden, attention_mask)
    if isinstance(pooling, TokenPooling):
        if input_ids is None:
            raise ValueError("to pool the state of a token its ids are needed")
        found = input_ids if pooling.token_id is None else (input_ids == pooling.token_id).int()
        where = found.argmax(dim=-1)
    elif attention_mask is None or (isinstance(pooling, LastPooling) and pooling.padding):
        return hidden[:, -1]
    else:
        numbers = torch.arange(hidden.shape[1], device=hidden.device)
        where = (numbers * attention_mask.bool()).argmax(dim=-1)
    return hidden[torch.arange(len(hidden), device=hidden.device), where]


def _mean(hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    if attention_mask is None:
        return hidden.mean(dim=1)
    weights = attention_mask.bool().to(hidden.dtype)[..., None]
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


class AttentionPool(nn.Module):
    """One learned query looks at all states; the answer goes through an MLP beside itself.

    Source: Zhai et al. 2022, Scaling vision transformers, arXiv 2106.04560, section 3.2 (MAP).
    """

    def __init__(self, config: AttentionPooling, model: ModelConfig) -> None:
        super().__init__()
        hidden = model.hidden_size
        self.num_heads = config.num_attention_heads
        self.query = nn.Parameter(torch.zeros(hidden))
        self.q_proj, self.k_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.v_proj, self.o_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.norm = build_norm(config.norm, hidden)
        self.feed_forward = MLP(config.feed_forward, model)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, S, H) -> (B, H)."""
        query = self.query.expand(len(hidden), 1, -1)
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in (
                (self.q_proj, query),
                (self.k_proj, hidden),
                (self.v_proj, hidden),
            )
        )
        x = self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.feed_forward(self.norm(x), Context())
        return cast(torch.Tensor, x[:, 0])

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Normal weights, zero biases."""
        nn.init.normal_(self.query, std=INIT_STD, generator=generator)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            init_linear(linear, generator, INIT_STD)
        self.feed_forward.reset_parameters(generator, output_std=INIT_STD)


def build_head(config: ModelConfig) -> HeadTransform | PooledHead | None:
    """The module before or in place of the matrix to the vocabulary, if there is one."""
    head = config.head
    if head is None:
        return None
    if not isinstance(head, LMHeadConfig):
        return PooledHead(head, config)
    if head.transform or (head.bias and config.tie_word_embeddings):
        return HeadTransform(head, config)
    return None
