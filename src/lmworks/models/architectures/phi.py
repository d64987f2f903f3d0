"""Phi-1, 1.5 and 2: attention and feed-forward side by side behind one norm, biases everywhere.

`PhiForCausalLM`. Source: Li et al. 2023, arXiv 2309.05463.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.rope import rope_from_hf, rope_to_hf
from lmworks.models.architectures.rules import Rule, for_kinds, same
from lmworks.models.architectures.values import HF_ACTIVATIONS, Values, activation, head_dim
from lmworks.models.config import (
    AttentionConfig,
    LayerNormConfig,
    LMHeadConfig,
    MLPConfig,
    ModelConfig,
)


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
    norm = LayerNormConfig(eps=read.number("layer_norm_eps", 1e-5))
    read.only("tie_word_embeddings", (False,))
    return ModelConfig.uniform(
        vocab_size=read.count("vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=read.count("num_hidden_layers"),
        mixer=AttentionConfig(
            num_attention_heads=heads,
            num_key_value_heads=read.count("num_key_value_heads", heads),
            head_dim=head_dim(hidden, heads),
            rope=rope_from_hf(read, fraction=0.5),
            bias="qkvo",
            qk_norm=norm if read.flag("qk_layernorm", False) else None,
        ),
        feed_forward=MLPConfig(
            intermediate_size=read.count("intermediate_size"),
            activation=activation(read, "hidden_act", "gelu_new"),
            gated=False,
            bias=True,
        ),
        norm=norm,
        placement="parallel_shared",
        head=LMHeadConfig(bias=True),
        max_position_embeddings=read.count("max_position_embeddings", 2048),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `PhiForCausalLM`."""
    layer = config.layers[0]
    mixer: Any = layer.mixer
    feed_forward: Any = layer.feed_forward
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": feed_forward.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": mixer.num_attention_heads,
        "num_key_value_heads": mixer.num_key_value_heads,
        "qk_layernorm": mixer.qk_norm is not None,
        "hidden_act": HF_ACTIVATIONS[feed_forward.activation],
        "layer_norm_eps": layer.norm.eps,
        "max_position_embeddings": config.max_position_embeddings,
        **rope_to_hf(mixer.rope),
        "partial_rotary_factor": mixer.rope.fraction,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _rules() -> list[Rule]:
    layer, theirs = "layers.{}.", "model.layers.{}."
    return [
        same("embed_tokens.weight", "model.embed_tokens.weight"),
        *for_kinds(f"{layer}mixer_norm", f"{theirs}input_layernorm"),
        *(
            rule
            for name in "qkv"
            for rule in for_kinds(f"{layer}mixer.{name}_proj", f"{theirs}self_attn.{name}_proj")
        ),
        *for_kinds(f"{layer}mixer.o_proj", f"{theirs}self_attn.dense"),
        *for_kinds(f"{layer}mixer.q_norm", f"{theirs}self_attn.q_layernorm"),
        *for_kinds(f"{layer}mixer.k_norm", f"{theirs}self_attn.k_layernorm"),
        *for_kinds(f"{layer}feed_forward.up_proj", f"{theirs}mlp.fc1"),
        *for_kinds(f"{layer}feed_forward.down_proj", f"{theirs}mlp.fc2"),
        *for_kinds("norm", "model.final_layernorm"),
        *for_kinds("lm_head", "lm_head"),
    ]


PHI = Architecture(
    name="phi",
    hf=Layout(
        rules=_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
    ),
)
