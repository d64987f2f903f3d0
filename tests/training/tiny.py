"""The small decoders that tests of training learn with: one shape, a few numbers to change."""

from __future__ import annotations

from typing import Any

import torch

from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.model import Model


def tiny_config(
    vocab_size: int,
    *,
    hidden_size: int = 32,
    layers: int = 2,
    heads: tuple[int, int] = (2, 1),
    inner: int = 64,
    length: int = 32,
    **changes: Any,
) -> ModelConfig:
    """A Llama; `heads` are those of queries and of keys."""
    queries, keys = heads
    mixer = AttentionConfig(
        num_attention_heads=queries,
        num_key_value_heads=keys,
        head_dim=hidden_size // queries,
    )
    parts: dict[str, Any] = {
        "feed_forward": MLPConfig(intermediate_size=inner),
        "tie_word_embeddings": True,
    }
    return ModelConfig.uniform(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        mixer=mixer,
        max_position_embeddings=length,
        **parts | changes,
    )


def tiny_model(vocab_size: int, seed: int = 0, **shape: Any) -> Model:
    """A model of `tiny_config`, its weights drawn from `seed`."""
    model = Model(tiny_config(vocab_size, **shape))
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model
