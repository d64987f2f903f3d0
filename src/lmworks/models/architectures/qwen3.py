"""Qwen3: Llama with a norm over each head's queries and keys. `Qwen3ForCausalLM` and GGUF `qwen3`.

Source: Qwen3 technical report, arXiv 2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.llama_layout import (
    attention_from_gguf,
    attention_from_hf,
    common_to_gguf,
    common_to_hf,
    eps_from_gguf,
    gguf_rules,
    hf_rules,
    mlp_from_hf,
    model_from_gguf,
    model_from_hf,
)
from lmworks.models.architectures.qwen2 import qwen_windows, windows_to_hf
from lmworks.models.architectures.values import Values
from lmworks.models.config import MLPConfig, ModelConfig, RMSNormConfig


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    config = model_from_hf(
        read,
        mixer=attention_from_hf(
            read,
            head_dim=read.count("head_dim", 128),
            bias="qkvo" if read.flag("attention_bias", False) else "",
            qk_norm=RMSNormConfig(eps=read.number("rms_norm_eps", 1e-6)),
        ),
        feed_forward=mlp_from_hf(read),
    )
    return qwen_windows(config, read)


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `Qwen3ForCausalLM`."""
    mixer: Any = config.layers[0].mixer
    common = common_to_hf(config, "Qwen3ForCausalLM", "qwen3")
    return common | windows_to_hf(config) | {"attention_bias": bool(mixer.bias)}


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    """Read `qwen3.*` keys and the tensors' names and shapes. Raises: UserError as above."""
    values = Values(metadata, "qwen3.")
    norm = RMSNormConfig(eps=eps_from_gguf(values))
    return model_from_gguf(
        values,
        tensors,
        mixer=attention_from_gguf(values, tensors, qk_norm=norm),
        feed_forward=MLPConfig(intermediate_size=values.count("feed_forward_length")),
    )


def config_to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The `qwen3.*` metadata that llama.cpp needs."""
    return common_to_gguf(config, "qwen3")


QWEN3 = Architecture(
    name="qwen3",
    hf=Layout(
        rules=hf_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
    ),
    gguf=Layout(rules=gguf_rules(), read_config=config_from_gguf, write_config=config_to_gguf),
)
