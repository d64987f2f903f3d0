"""Configs that contradict themselves are refused when they are made, and load without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from lmworks.core.errors import UserError
from lmworks.models.architectures.own import config_from_hf, config_to_hf
from lmworks.models.config import (
    AttentionConfig,
    LinearScaling,
    Llama3Scaling,
    MLPConfig,
    ModelConfig,
    RMSNormConfig,
    RoPEConfig,
)


def attention(**overrides: Any) -> AttentionConfig:
    values: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    return AttentionConfig(**values | overrides)


def model(**overrides: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "vocab_size": 10,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "mixer": attention(),
        "feed_forward": MLPConfig(intermediate_size=8),
    }
    return ModelConfig.uniform(**values | overrides)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: attention(num_key_value_heads=3), "not a multiple of num_key_value_heads 3"),
        (lambda: attention(num_key_value_heads=0), "num_key_value_heads must be a whole number"),
        (lambda: attention(head_dim=7), "7 rotary dimensions of head_dim 7 are an odd number"),
        (lambda: attention(head_dim=8.0), "head_dim must be a whole number"),
        (lambda: attention(num_attention_heads=True), "num_attention_heads must be a whole"),
        (lambda: RoPEConfig(theta=0.0), "rope: theta must be a number above 0"),
        (lambda: RoPEConfig(theta=float("nan")), "theta must be a number above 0"),
        (lambda: LinearScaling(factor=-2.0), "linear: factor must be a number above 0"),
        (
            lambda: Llama3Scaling(factor=8.0, low_freq_factor=4.0, high_freq_factor=4.0),
            "high_freq_factor 4 must be above low_freq_factor 4",
        ),
        (lambda: MLPConfig(intermediate_size=0), "mlp: intermediate_size"),
        (lambda: model(vocab_size=-1), "model: vocab_size must be a whole number >= 1, not -1"),
        (lambda: model(hidden_size="256"), "model: hidden_size"),
        (
            lambda: model(num_hidden_layers=10**9),
            "must be a whole number from 1 to 1024, not 10000",
        ),
        (lambda: model(vocab_size=10**13), "vocab_size must be a whole number"),
        (lambda: RMSNormConfig(eps=0.0), "rms_norm: eps must be a number above 0"),
    ],
)
def test_a_config_that_contradicts_itself_is_one_line(make: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_survives_plain_json() -> None:
    scaling = Llama3Scaling(factor=8.0)
    config = model(mixer=attention(rope=RoPEConfig(theta=5e5, scaling=scaling)))
    written = json.loads(json.dumps(config_to_hf(config)))
    assert config_from_hf(written) == config


def test_configs_load_without_torch() -> None:
    code = (
        "import sys, lmworks.models.config, lmworks.models.architectures.llama; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
