"""The engine over models whose layers keep a state: batches, chunks of prompts, reused slots."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from lmworks.inference import steps as steps_module
from lmworks.inference.engine import Engine
from lmworks.inference.sampling import Sampling
from lmworks.models.architectures.rwkv import rwkv_config
from lmworks.models.config import (
    AttentionConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
)
from lmworks.models.model import Model

SIZES: dict[str, Any] = {"vocab_size": 264, "hidden_size": 32, "max_position_embeddings": 192}


def config_of(name: str) -> ModelConfig:
    if name == "rwkv":
        return rwkv_config(num_hidden_layers=2, attention_size=32, intermediate_size=48, **SIZES)
    mixers = (
        MambaConfig(intermediate_size=48, state_size=4, time_step_rank=2),
        AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        Mamba2Config(num_heads=3, head_dim=16, state_size=8),
    )
    feed_forward = MLPConfig(intermediate_size=48)
    layers = tuple(LayerConfig(mixer=mixer, feed_forward=feed_forward) for mixer in mixers)
    return ModelConfig(layers=layers, **SIZES)


@pytest.mark.parametrize("name", ["rwkv", "hybrid"])
def test_a_mixed_batch_equals_a_loop_without_cache(
    name: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_module, "PREFILL_CHUNK", 7)
    model = Model(config_of(name)).eval()
    model.reset_parameters(torch.Generator().manual_seed(5))
    with torch.no_grad():  # sharper than fresh weights, so that greedy has no near ties
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    prompts = [[random.Random(i).randrange(4, 260)] * (1 + 3 * i) for i in range(7)]
    with Engine(model, tokenizer, max_batch=3) as engine:
        streams = [
            engine.submit(p, Sampling(temperature=0, max_tokens=8 + i))
            for i, p in enumerate(prompts)
        ]
        found = [[event.token_id for event in stream] for stream in streams]
    for prompt, tokens in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens[:-1]]))[0, len(prompt) - 1 :, :260]
        assert logits.argmax(-1).tolist() == tokens
