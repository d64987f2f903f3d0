"""Qwen2 and Qwen2.5: Llama with a bias on q, k and v. `Qwen2ForCausalLM` and GGUF `qwen2`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.layer_types import layer_types_to_hf, window_of, windowed
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
    config = model_from_hf(
        read, mixer=attention_from_hf(read, bias="qkv"), feed_forward=mlp_from_hf(read)
    )
    return qwen_windows(config, read)


def qwen_windows(config: ModelConfig, values: Values) -> ModelConfig:
    """The windows of a Qwen config: in the layers from `max_window_layers` on, if used at all."""
    if not values.flag("use_sliding_window", False):
        return windowed(config, values, lambda number: False, None)
    window, first = values.count("sliding_window", None), values.count("max_window_layers", 28)
    return windowed(config, values, lambda number: window is not None and number >= first, window)


def windows_to_hf(config: ModelConfig) -> dict[str, Any]:
    """What `qwen_windows` reads."""
    return layer_types_to_hf(config) | {"use_sliding_window": window_of(config) is not None}


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `Qwen2ForCausalLM`."""
    return common_to_hf(config, "Qwen2ForCausalLM", "qwen2") | windows_to_hf(config)


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
