"""Decoders of other projects: random weights, all options, the same answers as transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.parity import assert_parity, assert_written, randomised

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GPT2: dict[str, Any] = {"vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 4}

# name: (configuration class, its settings, model_type that we write)
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", SIZES | {"attention_bias": True, "mlp_bias": True}, "llama"),
    "qwen2": ("Qwen2Config", SIZES, "qwen2"),
    "gpt2": ("GPT2Config", GPT2 | {"n_positions": 128}, "gpt2"),
    "gpt2 untied, wide": (
        "GPT2Config",
        GPT2
        | {
            "n_positions": 128,
            "n_inner": 80,
            "tie_word_embeddings": False,
            "activation_function": "relu",
            "layer_norm_epsilon": 1e-3,
        },
        "gpt2",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_answers_as_transformers(
    name: str, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    kind, settings, model_type = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    theirs = randomised(transformers.AutoModelForCausalLM.from_config(config))
    ours = assert_parity(theirs, tmp_path / "theirs", token_ids)
    assert_written(ours, tmp_path / "ours", token_ids, model_type)
