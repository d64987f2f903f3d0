"""Llama and its likes (SmolLM2, TinyLlama, Llama 3.x): `LlamaForCausalLM` and GGUF `llama`.

GGUF files of this architecture hold the rows of q and k with the two halves of each head
interleaved (llama.cpp's converter does that for its own rotary kernel); `_row_order` undoes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
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
from lmworks.models.architectures.rope import ROPE_FREQS, rope_extras
from lmworks.models.architectures.rules import Rule, reordered
from lmworks.models.architectures.values import Values
from lmworks.models.config import MLPConfig, ModelConfig

if TYPE_CHECKING:
    import numpy as np
    import torch


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    return model_from_hf(
        read,
        mixer=attention_from_hf(read, bias="qkvo" if read.flag("attention_bias", False) else ""),
        feed_forward=mlp_from_hf(read, bias=read.flag("mlp_bias", False)),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `LlamaForCausalLM`."""
    mixer: Any = config.layers[0].mixer
    feed_forward: Any = config.layers[0].feed_forward
    return common_to_hf(config, "LlamaForCausalLM", "llama") | {
        "attention_bias": bool(mixer.bias),
        "mlp_bias": feed_forward.bias,
    }


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    """Read `llama.*` keys and the tensors' names and shapes. Raises: UserError as above."""
    values = Values(metadata, "llama.")
    if values.count("expert_count", 0):
        raise UserError("mixture-of-experts models are not supported for llama")
    return model_from_gguf(
        values,
        tensors,
        mixer=attention_from_gguf(values, tensors),
        feed_forward=MLPConfig(
            intermediate_size=values.count("feed_forward_length"),
            bias="blk.0.ffn_gate.bias" in tensors,
        ),
    )


def config_to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The `llama.*` metadata that llama.cpp needs."""
    return common_to_gguf(config, "llama")


def _extras(config: ModelConfig) -> dict[str, np.ndarray]:
    mixer: Any = config.layers[0].mixer
    return rope_extras(mixer.rope, mixer.head_dim)


def _order_of(heads_name: str) -> Any:
    """The order of the rows of q or k, whose number of heads is called `heads_name`."""

    def order(config: ModelConfig, numbers: tuple[int, ...]) -> torch.Tensor:
        import torch

        mixer: Any = config.layers[numbers[0]].mixer
        rows = torch.arange(getattr(mixer, heads_name) * mixer.head_dim, device="cpu")
        return rows.view(-1, mixer.head_dim // 2, 2).transpose(1, 2).reshape(-1)

    return order


def _interleaved(rule: Rule) -> Rule:
    own, foreign = rule.own[0], rule.foreign[0]
    if ".mixer.q_proj." in own:
        return reordered(own, foreign, _order_of("num_attention_heads"))
    if ".mixer.k_proj." in own:
        return reordered(own, foreign, _order_of("num_key_value_heads"))
    return rule


LLAMA = Architecture(
    name="llama",
    hf=Layout(
        rules=hf_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        ignored=r".*\.rotary_emb\.inv_freq",
        prefix="model.",
    ),
    gguf=Layout(
        rules=[_interleaved(rule) for rule in gguf_rules()],
        read_config=config_from_gguf,
        write_config=config_to_gguf,
        ignored=re.escape(ROPE_FREQS),
        extras=_extras,
    ),
)
