"""A tiny random model behind a live server on a loopback port."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch

from lmworks.inference.engine import Engine
from lmworks.inference.local import LocalChat
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.model import Model
from lmworks.serving.app import create_app
from lmworks.serving.guard import LOOPBACK_HOSTS
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


@pytest.fixture(scope="session")
def chat(tiny_model: Model, tokenizer: PipelineTokenizer) -> Iterator[LocalChat]:
    engine = Engine(tiny_model, tokenizer, max_batch=4, max_waiting=20)
    yield LocalChat(engine, "tiny")
    engine.close()


@pytest.fixture(scope="session")
def live_server(live_app: Any) -> Any:
    """`live_server(models, **options)`: the application over models, live."""
    return lambda models, **options: live_app(create_app(models, **options))


@pytest.fixture(scope="session")
def server(chat: LocalChat, live_server: Any) -> Iterator[Any]:
    with live_server({"tiny": chat}, allowed_hosts=LOOPBACK_HOSTS) as server:
        yield server


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    url = server.url + "/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
def raw(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client
