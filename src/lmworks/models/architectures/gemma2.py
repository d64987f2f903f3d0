"""Gemma 2: norms around each part, capped scores and logits, a window in every other layer.

`Gemma2ForCausalLM` and GGUF `gemma2`. Source: arXiv 2408.00118.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.gemma import (
    gemma_from_gguf,
    gemma_from_hf,
    gemma_to_hf,
    offset_norms,
)
from lmworks.models.architectures.layer_types import layer_types_to_hf, window_of, windowed
from lmworks.models.architectures.llama_layout import (
    SANDWICH_NORMS,
    common_to_gguf,
    gguf_rules,
    hf_rules,
)
from lmworks.models.architectures.values import Values, activation, shortest
from lmworks.models.config import LMHeadConfig, ModelConfig


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    # null is no cap; left out, the released models' caps are meant.
    caps = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}
    final, scores = (read.number(key, None if key in values else cap) for key, cap in caps.items())
    config = gemma_from_hf(
        read,
        activation=activation(read, "hidden_activation", "gelu_pytorch_tanh"),
        mixer={"softcap": scores, "scale": query_scale(read)},
        placement="sandwich",
        head=LMHeadConfig(softcap=final),
    )
    window = read.count("sliding_window", None if "sliding_window" in values else 4096)
    return windowed(config, read, lambda number: number % 2 == 0, window)


def query_scale(read: Values) -> float | None:
    """The scale of the scores: 1 / sqrt(query_pre_attn_scalar), None if that is the usual one."""
    scalar = read.count("query_pre_attn_scalar", 256)
    return None if scalar < 1 or scalar == read.count("head_dim", 256) else scalar**-0.5


def query_scalar(config: ModelConfig) -> int:
    """`query_pre_attn_scalar` of a model."""
    mixer: Any = config.layers[0].mixer
    return mixer.head_dim if mixer.scale is None else round(mixer.scale**-2)


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `Gemma2ForCausalLM`."""
    mixer: Any = config.layers[0].mixer
    head: Any = config.head
    return (
        gemma_to_hf(config, "Gemma2ForCausalLM", "gemma2")
        | layer_types_to_hf(config)
        | {
            "query_pre_attn_scalar": query_scalar(config),
            "attn_logit_softcapping": mixer.softcap,
            "final_logit_softcapping": head.softcap,
        }
    )


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    """Read `gemma2.*` keys and the tensors' names and shapes. Raises: UserError as above."""
    values = Values(metadata, "gemma2.")
    config = gemma_from_gguf(
        values,
        tensors,
        mixer={"softcap": _cap(values, "attn_logit_softcapping", 50.0)},
        placement="sandwich",
        head=LMHeadConfig(softcap=_cap(values, "final_logit_softcapping", 30.0)),
    )
    window = values.count("attention.sliding_window", 4096)
    return windowed(config, values, lambda number: number % 2 == 0, window)


def _cap(values: Values, name: str, default: float) -> float:
    return shortest(values.number(name, default))


def config_to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The `gemma2.*` metadata that llama.cpp needs."""
    mixer: Any = config.layers[0].mixer
    head: Any = config.head
    return common_to_gguf(config, "gemma2") | {
        "gemma2.attn_logit_softcapping": float(mixer.softcap),
        "gemma2.final_logit_softcapping": float(head.softcap),
        "gemma2.attention.sliding_window": window_of(config),
    }


GEMMA2 = Architecture(
    name="gemma2",
    hf=Layout(
        rules=hf_rules(SANDWICH_NORMS),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
    ),
    gguf=Layout(
        rules=offset_norms(gguf_rules(SANDWICH_NORMS)),
        read_config=config_from_gguf,
        write_config=config_to_gguf,
    ),
)
