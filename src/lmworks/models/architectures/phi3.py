"""Phi-3 and Phi-4-mini: Llama with fused matrices and two sets of rotary factors.

`Phi3ForCausalLM`: one matrix for queries, keys and values, one for gate and up, maybe a window, a
part of each head turned (Phi-4-mini), and LongRoPE. Source: arXiv 2404.14219.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.layer_types import window_of
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
from lmworks.models.architectures.rope import ROPE_LONG, ROPE_SHORT, rope_extras, rope_from_hf
from lmworks.models.architectures.rules import Rule, fused
from lmworks.models.architectures.values import Values
from lmworks.models.config import MLPConfig, ModelConfig, RMSNormConfig, SlidingWindow

if TYPE_CHECKING:
    import numpy as np

_ORIGINAL = 4096  # of the context before scaling, where a file does not say
# The first releases' words for LongRoPE, as transformers takes them.
_RENAMED = {"su": "longrope", "yarn": "longrope"}


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    window = read.count("sliding_window", None)
    return model_from_hf(
        read,
        mixer=attention_from_hf(
            read,
            rope=rope_from_hf(read, fraction=1.0, original=_ORIGINAL, renamed=_RENAMED),
            pattern=None if window is None else SlidingWindow(window=window),
        ),
        feed_forward=mlp_from_hf(read),
        norm=RMSNormConfig(eps=read.number("rms_norm_eps", 1e-5)),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `Phi3ForCausalLM`."""
    mixer: Any = config.layers[0].mixer
    scaling: Any = mixer.rope.scaling
    original = _ORIGINAL if scaling is None else scaling.original_max_position_embeddings
    return common_to_hf(config, "Phi3ForCausalLM", "phi3") | {
        "sliding_window": window_of(config),
        "original_max_position_embeddings": original,
        # transformers' own ids lie beyond a small vocabulary.
        "pad_token_id": None,
    }


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    """Read `phi3.*` keys and the tensors' names and shapes. Raises: UserError as above."""
    values = Values(metadata, "phi3.")
    window = values.count("attention.sliding_window", 0)
    pattern = SlidingWindow(window=window) if window else None
    return model_from_gguf(
        values,
        tensors,
        mixer=attention_from_gguf(values, tensors, partly=True, pattern=pattern),
        feed_forward=MLPConfig(intermediate_size=values.count("feed_forward_length")),
    )


def config_to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The `phi3.*` metadata that llama.cpp needs."""
    values = common_to_gguf(config, "phi3")
    original = "phi3.rope.scaling.original_context_length"
    # llama.cpp insists on a window, and takes 0 for none.
    window = {"phi3.attention.sliding_window": window_of(config) or 0}
    return values | window | {original: values.get(original, config.max_position_embeddings)}


def _extras(config: ModelConfig) -> dict[str, np.ndarray]:
    mixer: Any = config.layers[0].mixer
    return rope_extras(mixer.rope, mixer.head_dim)


def qkv_sizes(config: ModelConfig, numbers: tuple[int, ...]) -> list[int]:
    mixer: Any = config.layers[numbers[0]].mixer
    keys = mixer.num_key_value_heads * mixer.head_dim
    return [mixer.num_attention_heads * mixer.head_dim, keys, keys]


def _gate_up_sizes(config: ModelConfig, numbers: tuple[int, ...]) -> list[int]:
    feed_forward: Any = config.layers[numbers[0]].feed_forward
    return [feed_forward.intermediate_size] * 2


def with_fused(rules: list[Rule], qkv: str, gate_up: str) -> list[Rule]:
    """`rules` with these names for the fused matrices of a layer."""
    mixer, feed_forward = "layers.{}.mixer.", "layers.{}.feed_forward."
    q_k_v = [f"{mixer}{name}_proj.weight" for name in "qkv"]
    gate_and_up = [f"{feed_forward}{name}_proj.weight" for name in ("gate", "up")]
    return [
        *(rule for rule in rules if rule.own[0] not in (*q_k_v, *gate_and_up)),
        fused(q_k_v, qkv, sizes=qkv_sizes),
        fused(gate_and_up, gate_up, sizes=_gate_up_sizes),
    ]


PHI3 = Architecture(
    name="phi3",
    hf=Layout(
        rules=with_fused(
            hf_rules(),
            "model.layers.{}.self_attn.qkv_proj.weight",
            "model.layers.{}.mlp.gate_up_proj.weight",
        ),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
    ),
    gguf=Layout(
        rules=with_fused(gguf_rules(), "blk.{}.attn_qkv.weight", "blk.{}.ffn_up.weight"),
        read_config=config_from_gguf,
        write_config=config_to_gguf,
        ignored="|".join(map(re.escape, (ROPE_LONG, ROPE_SHORT))),
        extras=_extras,
    ),
)
