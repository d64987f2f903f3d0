"""Qwen2 and Qwen2.5: Llama with a bias on q, k and v. `Qwen2ForCausalLM` and GGUF `qwen2`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.llama_layout import (
    attention_from_gguf,
    attention_from_hf,
    common_to_gguf,
    common_to_hf,
    gguf_rules,
    hf_rules,
    mlp_from_hf,
    model_from_gguf,
    model_from_hf,
)
from lmworks.models.architectures.values import Values
from lmworks.models.config import MLPConfig, ModelConfig


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    read.only("use_sliding_window", (False,))
    return model_from_hf(
        read, mixer=attention_from_hf(read, bias="qkv"), feed_forward=mlp_from_hf(read)
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `Qwen2ForCausalLM`."""
    return common_to_hf(config, "Qwen2ForCausalLM", "qwen2")


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    """Read `qwen2.*` keys and the tensors' names and shapes. Raises: UserError as above."""
    values = Values(metadata, "qwen2.")
    return model_from_gguf(
        values,
        tensors,
        mixer=attention_from_gguf(values, tensors),
        feed_forward=MLPConfig(intermediate_size=values.count("feed_forward_length")),
    )


def config_to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The `qwen2.*` metadata that llama.cpp needs."""
    return common_to_gguf(config, "qwen2")


QWEN2 = Architecture(
    name="qwen2",
    hf=Layout(
        rules=hf_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
    ),
    gguf=Layout(rules=gguf_rules(), read_config=config_from_gguf, write_config=config_to_gguf),
)
