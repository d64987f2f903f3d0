"""Gemma 3: Gemma 2 with normed queries and keys for caps, and five windows to one whole layer.

Layers with a window turn by a rotary base of their own. `Gemma3ForCausalLM` (`gemma3_text`) and
GGUF `gemma3`. Source: arXiv 2503.19786.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.gemma import (
    gemma_from_gguf,
    gemma_from_hf,
    gemma_norm,
    gemma_to_hf,
    offset_norms,
)
from lmworks.models.architectures.gemma2 import query_scalar, query_scale
from lmworks.models.architectures.layer_types import (
    FULL,
    SLIDING,
    layer_by_layer,
    layer_types_to_hf,
    mixers_of,
    ropes_from_hf,
    window_of,
    windowed,
)
from lmworks.models.architectures.llama_layout import (
    SANDWICH_NORMS,
    common_to_gguf,
    eps_from_gguf,
    gguf_rules,
    hf_rules,
)
from lmworks.models.architectures.rope import rope_to_hf
from lmworks.models.architectures.values import Values, activation, shortest
from lmworks.models.config import AttentionConfig, LMHeadConfig, ModelConfig, RoPEConfig

_THETA, _LOCAL_THETA = 1e6, 1e4
_PATTERN = 6  # every sixth layer looks at all positions


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    read.only("attn_logit_softcapping", (None,))  # transformers reads it and does nothing
    ropes = ropes_from_hf(
        read, theta=_THETA, local_theta=_LOCAL_THETA, local_key="rope_local_base_freq"
    )
    config = gemma_from_hf(
        read,
        activation=activation(read, "hidden_activation", "gelu_pytorch_tanh"),
        mixer={
            "rope": ropes[FULL],
            "scale": query_scale(read),
            "qk_norm": gemma_norm(read.number("rms_norm_eps", 1e-6)),
        },
        placement="sandwich",
        head=LMHeadConfig(softcap=read.number("final_logit_softcapping", None)),
    )
    every = read.count("sliding_window_pattern", read.count("_sliding_window_pattern", _PATTERN))
    return _alternating(config, read, every, read.count("sliding_window", 4096), ropes[SLIDING])


def _alternating(
    config: ModelConfig, values: Values, every: int, window: int, rope: RoPEConfig
) -> ModelConfig:
    if every < 1:
        raise UserError(f"the pattern of windows must be a whole number >= 1, not {every}")
    return windowed(config, values, lambda number: (number + 1) % every != 0, window, rope)


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `Gemma3ForCausalLM`."""
    whole, local = mixers_of(config)
    head: Any = config.head
    return (
        gemma_to_hf(config, "Gemma3ForCausalLM", "gemma3_text")
        | layer_types_to_hf(config)
        | rope_to_hf(whole.rope)
        | {
            "rope_local_base_freq": local.rope.theta if local.pattern else _LOCAL_THETA,
            "query_pre_attn_scalar": query_scalar(config),
            "final_logit_softcapping": head.softcap,
        }
    )


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    """Read `gemma3.*` keys and the tensors' names and shapes. Raises: UserError as above."""
    values = Values(metadata, "gemma3.")
    cap = values.number("final_logit_softcapping", None)
    config = gemma_from_gguf(
        values,
        tensors,
        mixer={"qk_norm": gemma_norm(eps_from_gguf(values))},
        placement="sandwich",
        head=LMHeadConfig(softcap=None if cap is None else shortest(cap)),
    )
    if config.num_hidden_layers == 62:  # the 27B alone scales by hidden size, as llama.cpp knows
        config = layer_by_layer(
            config, lambda _, mixer: dataclasses.replace(mixer, scale=_scale_27b(config, mixer))
        )
    window = values.count("attention.sliding_window", 1024)
    local = RoPEConfig(theta=values.number("rope.freq_base_swa", _LOCAL_THETA))
    return _alternating(config, values, _PATTERN, window, local)


def _scale_27b(config: ModelConfig, mixer: AttentionConfig) -> float:
    return float((config.hidden_size // mixer.num_attention_heads) ** -0.5)


def config_to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The `gemma3.*` metadata that llama.cpp needs."""
    whole, local = mixers_of(config)
    head: Any = config.head
    layers = (dataclasses.replace(config.layers[0], mixer=whole), *config.layers[1:])
    values: dict[str, Any] = {
        "gemma3.attention.sliding_window": window_of(config),
        "gemma3.rope.freq_base_swa": float(local.rope.theta),
    }
    if head.softcap is not None:
        values["gemma3.final_logit_softcapping"] = float(head.softcap)
    return common_to_gguf(dataclasses.replace(config, layers=layers), "gemma3") | values


GEMMA3_TEXT = Architecture(
    name="gemma3_text",
    hf=Layout(
        rules=hf_rules(SANDWICH_NORMS),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
    ),
)
GEMMA3 = Architecture(
    name="gemma3",
    gguf=Layout(
        rules=offset_norms(gguf_rules(SANDWICH_NORMS)),
        read_config=config_from_gguf,
        write_config=config_to_gguf,
    ),
)
