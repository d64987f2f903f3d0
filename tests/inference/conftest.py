"""A tiny random model and a byte tokenizer: every path of the engine in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lmworks.inference.engine import Engine
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.model import Model
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe

CONTEXT = 192


@pytest.fixture(scope="session")
def tokenizer() -> PipelineTokenizer:
    """Four special tokens, then one per byte: 260 ids."""
    return train_bpe(["no merge is learnt"], vocab_size=260)


@pytest.fixture(scope="session")
def tiny_model() -> Model:
    config = ModelConfig.uniform(
        vocab_size=264,  # padded: four ids that no token stands for
        hidden_size=32,
        num_hidden_layers=2,
        mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        feed_forward=MLPConfig(intermediate_size=48),
        max_position_embeddings=CONTEXT,
    )
    model = Model(config).eval()
    model.reset_parameters(torch.Generator().manual_seed(5))
    with torch.no_grad():  # sharper than fresh weights, so that greedy has no near ties
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model


@pytest.fixture
def engine(tiny_model: Model, tokenizer: PipelineTokenizer) -> Iterator[Engine]:
    with Engine(tiny_model, tokenizer, max_batch=4) as engine:
        yield engine
