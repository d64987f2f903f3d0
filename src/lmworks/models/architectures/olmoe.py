"""OLMoE: many small experts, and a norm over all queries and over all keys. `OlmoeForCausalLM`.

Source: Muennighoff et al. 2024, "OLMoE: open mixture-of-experts language models",
arXiv 2409.02060.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.expert_layout import (
    expert_rules,
    moe_from_hf,
    moe_to_hf,
    variants,
)
from lmworks.models.architectures.llama_layout import (
    attention_from_hf,
    common_to_hf,
    model_from_hf,
)
from lmworks.models.architectures.values import Values
from lmworks.models.config import ModelConfig, RMSNormConfig


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    read.only("clip_qkv", (None,))
    norm = RMSNormConfig(eps=read.number("rms_norm_eps", 1e-5))
    return model_from_hf(
        read,
        norm=norm,
        mixer=attention_from_hf(
            read,
            bias="qkvo" if read.flag("attention_bias", False) else "",
            qk_norm=norm,
            qk_norm_over="all",
        ),
        feed_forward=moe_from_hf(read, size="intermediate_size", normalize=False),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `OlmoeForCausalLM`."""
    mixer: Any = config.layers[0].mixer
    common = common_to_hf(config, "OlmoeForCausalLM", "olmoe")
    moe = moe_to_hf(config.layers[0].feed_forward, size="intermediate_size")
    return common | moe | {"attention_bias": bool(mixer.bias), "clip_qkv": None}


OLMOE = Architecture(
    name="olmoe",
    hf=Layout(
        rules=expert_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
        variants=variants(),
    ),
)
