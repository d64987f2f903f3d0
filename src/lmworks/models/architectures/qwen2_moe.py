"""Qwen1.5-MoE and Qwen2-MoE: small experts beside a gated shared one. `Qwen2MoeForCausalLM`.

Source: Yang et al. 2024, "Qwen2 technical report", arXiv 2407.10671, section 2.2.2.
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
from lmworks.models.config import ModelConfig

_SIZE, _SHARED = "moe_intermediate_size", "shared_expert_intermediate_size"


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    read.only("use_sliding_window", (False,))
    moe = moe_from_hf(
        read,
        size=_SIZE,
        normalize=False,
        shared_intermediate_size=read.count(_SHARED),
        shared_gate=True,
    )
    mixer = attention_from_hf(read, bias="qkv" if read.flag("qkv_bias", True) else "")
    config = model_from_hf(read, mixer=mixer, feed_forward=moe)
    return with_dense(config, mlp_from_hf(read), sparse_layers(read))


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `Qwen2MoeForCausalLM`."""
    moe, dense, numbers = split_layers(config)
    mixer: Any = config.layers[0].mixer
    return {
        **common_to_hf(config, "Qwen2MoeForCausalLM", "qwen2_moe"),
        **moe_to_hf(moe, size=_SIZE),
        "intermediate_size": dense.intermediate_size if dense else moe.intermediate_size,
        _SHARED: moe.shared_intermediate_size,
        "decoder_sparse_step": 1,
        "mlp_only_layers": numbers,
        "qkv_bias": bool(mixer.bias),
        "use_sliding_window": False,
    }


QWEN2_MOE = Architecture(
    name="qwen2_moe",
    hf=Layout(
        rules=expert_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
        variants=variants(),
    ),
)
