"""SmolLM2-135M-Instruct: greedy answers with speculation are, to the token, those without."""

from __future__ import annotations

import pytest
import torch

from lmworks.inference.chat import load_chat
from lmworks.inference.draft_model import DraftModel
from lmworks.inference.speculative import Speculation, speculation_for
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.model import Model

pytestmark = pytest.mark.weights

CODE = "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n    return a - b\n"
ASK = [{"role": "user", "content": f"Repeat this code exactly:\n{CODE}"}]


@pytest.fixture(scope="module")
def chat():
    chat = load_chat("smollm2-135m", max_batch=2)
    yield chat
    chat.close()


@pytest.fixture(scope="module")
def plain(chat):
    return chat.complete(ASK, temperature=0, max_tokens=24)


def random_draft(engine):
    """A draft of the same vocabulary that knows nothing."""
    config = ModelConfig.uniform(
        vocab_size=engine.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        mixer=AttentionConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=8),
        feed_forward=MLPConfig(intermediate_size=32),
        max_position_embeddings=512,
    )
    model = Model(config).eval()
    model.reset_parameters(torch.Generator().manual_seed(1))
    return DraftModel.beside(engine, model, engine.vocab_size)


SOURCES = {
    "lookup": lambda engine: speculation_for(engine, "lookup").source,
    "random draft": random_draft,
    "early exit": lambda engine: speculation_for(engine, "early-exit=2").source,
}


@pytest.mark.parametrize("name", SOURCES)
def test_greedy_to_the_token(chat, plain, name):
    engine = chat.engine
    engine.proposer = Speculation(SOURCES[name](engine), always=True, most=4)
    try:
        answer = chat.complete(ASK, temperature=0, max_tokens=24)
    finally:
        engine.proposer = None
    assert answer.text == plain.text
    assert answer.proposed_tokens > 0
    assert name != "lookup" or answer.accepted_tokens > 3
