"""Tiny models: ours from a seed, and transformers' own with random weights saved in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, RoPEConfig
from lmworks.models.model import Model

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 128,
}


@pytest.fixture
def tiny_config() -> ModelConfig:
    return ModelConfig.uniform(
        vocab_size=97,
        hidden_size=48,
        num_hidden_layers=2,
        mixer=AttentionConfig(
            num_attention_heads=6, num_key_value_heads=2, head_dim=8, rope=RoPEConfig(theta=1000.0)
        ),
        feed_forward=MLPConfig(intermediate_size=80),
        max_position_embeddings=128,
    )


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> Model:
    model = Model(tiny_config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture
def make_llama(tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """transformers' Llama with random weights, and the folder it was saved to."""
    transformers = pytest.importorskip("transformers")

    def make(name: str = "llama", **overrides: Any) -> tuple[Any, Path]:
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY | overrides))
        with torch.no_grad():
            for parameter in model.parameters():  # norms and biases too: all ones prove nothing
                parameter.add_(torch.randn_like(parameter) * 0.1)
        folder = tmp_path / name
        model.eval().save_pretrained(folder)
        return model, folder

    return make


@pytest.fixture
def token_ids() -> torch.Tensor:
    return torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(1))
