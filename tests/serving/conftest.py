"""A tiny random model behind a live server on a loopback port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
import uvicorn

from lmworks.inference.engine import Engine
from lmworks.inference.local import LocalChat
from lmworks.models.config import AttentionConfig, ModelConfig, SwiGLUConfig
from lmworks.models.decoder import Decoder
from lmworks.serving.app import create_app
from lmworks.serving.guard import LOOPBACK_HOSTS
from lmworks.serving.run import bind
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe

CONTEXT = 192


@pytest.fixture(scope="session")
def tokenizer() -> PipelineTokenizer:
    """Four special tokens, then one per byte: 260 ids."""
    return train_bpe(["no merge is learnt"], vocab_size=260)


@pytest.fixture(scope="session")
def tiny_model() -> Decoder:
    config = ModelConfig(
        vocab_size=264,  # padded: four ids that no token stands for
        hidden_size=32,
        num_hidden_layers=2,
        mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        feed_forward=SwiGLUConfig(intermediate_size=48),
        max_position_embeddings=CONTEXT,
    )
    model = Decoder(config).eval()
    model.reset_parameters(torch.Generator().manual_seed(5))
    with torch.no_grad():  # sharper than fresh weights, so that greedy has no near ties
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model


@pytest.fixture(scope="session")
def chat(tiny_model: Decoder, tokenizer: PipelineTokenizer) -> Iterator[LocalChat]:
    engine = Engine(tiny_model, tokenizer, max_batch=4, max_waiting=20)
    yield LocalChat(engine, "tiny")
    engine.close()


class LiveServer:
    """An application on a free loopback port, in a thread of its own."""

    def __init__(self, models: dict[str, Any], **options: Any) -> None:
        self.app = create_app(models, **options)
        self._socket = bind("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(self.app, log_level="warning", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self) -> LiveServer:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


@pytest.fixture(scope="session")
def live_server() -> type[LiveServer]:
    return LiveServer


@pytest.fixture(scope="session")
def server(chat: LocalChat) -> Iterator[LiveServer]:
    with LiveServer({"tiny": chat}, allowed_hosts=LOOPBACK_HOSTS) as server:
        yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    url = server.url + "/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
def raw(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client
