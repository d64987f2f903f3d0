"""Gemma: GeGLU, norms around 1 + weight, an embedding scaled by sqrt(hidden size).

`GemmaForCausalLM` and GGUF `gemma`, whose norms hold 1 + weight. What Gemma 2 and 3 share with it
stands here too. Source: arXiv 2403.08295.
"""

from __future__ import annotations

import dataclasses
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
from lmworks.models.architectures.rules import Rule, shifted
from lmworks.models.architectures.values import HF_ACTIVATIONS, Values, activation
from lmworks.models.config import EmbeddingConfig, MLPConfig, ModelConfig, RMSNormConfig


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    kind = activation(read, "hidden_act", "gelu_pytorch_tanh")
    # The first files say gelu and mean its approximation, as transformers reads them.
    return gemma_from_hf(read, activation="gelu_tanh" if kind == "gelu" else kind)


def gemma_from_hf(
    read: Values, *, activation: str, mixer: Mapping[str, Any] | None = None, **parts: Any
) -> ModelConfig:
    """What all Gemmas share; `mixer` are changes of the attention, `parts` those of the model."""
    read.only("use_bidirectional_attention", (False,))
    bias = "qkvo" if read.flag("attention_bias", False) else ""
    size = read.count("head_dim", 256)
    config = model_from_hf(
        read,
        mixer=attention_from_hf(read, head_dim=size, bias=bias, **(mixer or {})),
        feed_forward=mlp_from_hf(read, activation=activation),
        norm=gemma_norm(read.number("rms_norm_eps", 1e-6)),
        tied=True,
        **parts,
    )
    return scaled(config)


def gemma_norm(eps: float) -> RMSNormConfig:
    """The norm of all Gemmas."""
    return RMSNormConfig(eps=eps, unit_offset=True)


def scaled(config: ModelConfig) -> ModelConfig:
    """The same model with its embedding scaled by sqrt(hidden size)."""
    embedding = EmbeddingConfig(scale=config.hidden_size**0.5)
    return dataclasses.replace(config, embedding=embedding)


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `GemmaForCausalLM`."""
    return gemma_to_hf(config, "GemmaForCausalLM", "gemma")


def gemma_to_hf(config: ModelConfig, hf_class: str, model_type: str) -> dict[str, Any]:
    """What all Gemmas write."""
    mixer: Any = config.layers[0].mixer
    feed_forward: Any = config.layers[0].feed_forward
    return common_to_hf(config, hf_class, model_type) | {
        "attention_bias": bool(mixer.bias),
        "hidden_activation": HF_ACTIVATIONS[feed_forward.activation],
    }


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    """Read `gemma.*` keys and the tensors' names and shapes. Raises: UserError as above."""
    return gemma_from_gguf(Values(metadata, "gemma."), tensors)


def gemma_from_gguf(
    values: Values,
    tensors: Mapping[str, Any],
    mixer: Mapping[str, Any] | None = None,
    **parts: Any,
) -> ModelConfig:
    """What all Gemmas share in a GGUF file; see `gemma_from_hf`."""
    size = values.count("feed_forward_length")
    config = model_from_gguf(
        values,
        tensors,
        mixer=attention_from_gguf(values, tensors, **(mixer or {})),
        feed_forward=MLPConfig(intermediate_size=size, activation="gelu_tanh"),
        norm=gemma_norm(eps_from_gguf(values)),
        **parts,
    )
    return scaled(config)


def config_to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The `gemma.*` metadata that llama.cpp needs."""
    return common_to_gguf(config, "gemma")


def offset_norms(rules: list[Rule]) -> list[Rule]:
    """`rules` with every norm stored as 1 + weight, as GGUF files of Gemma have it."""
    return [
        shifted(rule.own[0], rule.foreign[0], 1.0) if rule.own[0].endswith("norm.weight") else rule
        for rule in rules
    ]


GEMMA = Architecture(
    name="gemma",
    hf=Layout(
        rules=hf_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
    ),
    gguf=Layout(
        rules=offset_norms(gguf_rules()),
        read_config=config_from_gguf,
        write_config=config_to_gguf,
    ),
)
