"""Mixtral: Mistral with experts. `MixtralForCausalLM`.

Source: Jiang et al. 2024, "Mixtral of experts", arXiv 2401.04088.
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
from lmworks.models.config import ModelConfig, RMSNormConfig, SlidingWindow


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    read.only("router_jitter_noise", (0.0, 0))
    window = read.count("sliding_window", None)
    return model_from_hf(
        read,
        norm=RMSNormConfig(eps=read.number("rms_norm_eps", 1e-5)),
        mixer=attention_from_hf(
            read, pattern=None if window is None else SlidingWindow(window=window)
        ),
        feed_forward=moe_from_hf(
            read, size="intermediate_size", count="num_local_experts", normalize=True
        ),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `MixtralForCausalLM`."""
    mixer: Any = config.layers[0].mixer
    written = common_to_hf(config, "MixtralForCausalLM", "mixtral")
    written |= moe_to_hf(
        config.layers[0].feed_forward, size="intermediate_size", count="num_local_experts"
    )
    del written["norm_topk_prob"]  # always so
    return written | {"sliding_window": mixer.pattern.window if mixer.pattern else None}


MIXTRAL = Architecture(
    name="mixtral",
    hf=Layout(
        rules=expert_rules("block_sparse_moe.", ("w1", "w3", "w2")),
        read_config=config_from_hf,
        write_config=config_to_hf,
        ignored=r".*\.rotary_emb\.inv_freq",
        prefix="model.",
        variants=variants(),
    ),
)
