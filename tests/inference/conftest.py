"""A tiny random model and a byte tokenizer: every path of the engine in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
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


@pytest.fixture(scope="session")
def walk() -> Callable[..., str]:
    """`walk(compiler, grammar, seed, ends)`: the text of a random path that a grammar allows.

    Any allowed token will do at first, wherever it cuts the text; later, one of those that bring
    an end, so that the path is finite.
    """

    def walk(compiler: Any, grammar: Any, seed: int, ends: Any, most: int = 4000) -> str:
        random = np.random.default_rng(seed)
        state = compiler.start(grammar)
        decoder = state.stream_decoder()
        closing = [i for i, t in enumerate(compiler.tokens.texts) if t and t in b'"}]']
        text = ""
        for step in range(most):
            if state.finished:
                return text + decoder.finish()
            allowed = np.flatnonzero(state.allowed_mask())
            assert len(allowed), text
            near = [i for i in allowed if i in ends] or [i for i in closing if i in allowed]
            token_id = int(random.choice(near if near and step > 40 else allowed))
            if token_id in ends:
                return text + decoder.finish()
            state.accept(token_id)
            text += decoder.push(token_id)
        raise AssertionError(f"no end: {text[:200]}")

    return walk
