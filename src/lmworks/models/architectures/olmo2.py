"""OLMo 2: norms behind each part, and over all queries and all keys. `Olmo2ForCausalLM`.

GGUF: `olmo2`. Source: arXiv 2501.00656.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.llama_layout import (
    OUTPUT_NORMS,
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
from lmworks.models.architectures.values import Values
from lmworks.models.config import MLPConfig, ModelConfig, RMSNormConfig


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    return olmo2_from_hf(Values(values))


def olmo2_from_hf(read: Values, **changes: Any) -> ModelConfig:
    """An OLMo 2 or 3 with these changes of its attention."""
    norm = RMSNormConfig(eps=read.number("rms_norm_eps", 1e-5))
    return model_from_hf(
        read,
        mixer=attention_from_hf(
            read,
            bias="qkvo" if read.flag("attention_bias", False) else "",
            qk_norm=norm,
            qk_norm_over="all",
            **changes,
        ),
        feed_forward=mlp_from_hf(read),
        norm=norm,
        placement="output",
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `Olmo2ForCausalLM`."""
    mixer: Any = config.layers[0].mixer
    bias = {"attention_bias": bool(mixer.bias)}
    return common_to_hf(config, "Olmo2ForCausalLM", "olmo2") | bias


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    """Read `olmo2.*` keys and the tensors' names and shapes. Raises: UserError as above."""
    values = Values(metadata, "olmo2.")
    norm = RMSNormConfig(eps=eps_from_gguf(values))
    return model_from_gguf(
        values,
        tensors,
        mixer=attention_from_gguf(values, tensors, qk_norm=norm, qk_norm_over="all"),
        feed_forward=MLPConfig(intermediate_size=values.count("feed_forward_length")),
        norm=norm,
        placement="output",
    )


def config_to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The `olmo2.*` metadata that llama.cpp needs."""
    return common_to_gguf(config, "olmo2")


OLMO2 = Architecture(
    name="olmo2",
    hf=Layout(
        rules=hf_rules(OUTPUT_NORMS),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
    ),
    gguf=Layout(
        rules=gguf_rules(OUTPUT_NORMS),
        read_config=config_from_gguf,
        write_config=config_to_gguf,
    ),
)
