"""Qwen3-MoE: Qwen3 with small experts, none of them shared. `Qwen3MoeForCausalLM`.

Source: Qwen3 technical report, arXiv 2505.09388, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.expert_layout import (
    expert_rules,
    moe_from_hf,
    moe_to_hf,
    sparse_layers,
    split_layers,
    variants,
    with_dense,
)
from lmworks.models.architectures.llama_layout import (
    attention_from_hf,
    common_to_hf,
    mlp_from_hf,
    model_from_hf,
)
from lmworks.models.architectures.values import Values
from lmworks.models.config import ModelConfig, RMSNormConfig

_SIZE = "moe_intermediate_size"


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    read.only("use_sliding_window", (False,))
    mixer = attention_from_hf(
        read,
        bias="qkvo" if read.flag("attention_bias", False) else "",
        qk_norm=RMSNormConfig(eps=read.number("rms_norm_eps", 1e-6)),
    )
    moe = moe_from_hf(read, size=_SIZE, normalize=False)
    config = model_from_hf(read, mixer=mixer, feed_forward=moe)
    return with_dense(config, mlp_from_hf(read), sparse_layers(read))


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `Qwen3MoeForCausalLM`."""
    moe, dense, numbers = split_layers(config)
    mixer: Any = config.layers[0].mixer
    return {
        **common_to_hf(config, "Qwen3MoeForCausalLM", "qwen3_moe"),
        **moe_to_hf(moe, size=_SIZE),
        "intermediate_size": dense.intermediate_size if dense else moe.intermediate_size,
        "decoder_sparse_step": 1,
        "mlp_only_layers": numbers,
        "attention_bias": bool(mixer.bias),
        "use_sliding_window": False,
    }


QWEN3_MOE = Architecture(
    name="qwen3_moe",
    hf=Layout(
        rules=expert_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
        variants=variants(),
    ),
)
