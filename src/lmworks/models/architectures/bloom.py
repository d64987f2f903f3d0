"""BLOOM: ALiBi in place of positions, a norm over the embedding. `BloomForCausalLM`.

Its one matrix for queries, keys and values takes turns head by head. Source: arXiv 2211.05100.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.gpt_neox import layer_rules
from lmworks.models.architectures.rules import for_kinds, same
from lmworks.models.architectures.values import Values, head_dim
from lmworks.models.config import (
    AttentionConfig,
    EmbeddingConfig,
    LayerNormConfig,
    MLPConfig,
    ModelConfig,
)


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    hidden = read.count("hidden_size", read.count("n_embed", None))
    heads = read.count("n_head", read.count("num_attention_heads", None))
    read.only("apply_residual_connection_post_layernorm", (False,))
    norm = LayerNormConfig(eps=read.number("layer_norm_epsilon", 1e-5))
    return ModelConfig.uniform(
        vocab_size=read.count("vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=read.count("n_layer", read.count("num_hidden_layers", None)),
        mixer=AttentionConfig(
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=head_dim(hidden or 0, heads or 0),
            rope=None,
            alibi=True,
            bias="qkvo",
        ),
        feed_forward=MLPConfig(
            intermediate_size=4 * (hidden or 0), activation="gelu_tanh", gated=False, bias=True
        ),
        norm=norm,
        embedding=EmbeddingConfig(norm=norm),
        tie_word_embeddings=read.flag("tie_word_embeddings", True),
        max_position_embeddings=read.count("seq_length", 2048),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `BloomForCausalLM`."""
    mixer: Any = config.layers[0].mixer
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": mixer.num_attention_heads,
        "layer_norm_epsilon": config.layers[0].norm.eps,
        "seq_length": config.max_position_embeddings,
        "apply_residual_connection_post_layernorm": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
    }


BLOOM = Architecture(
    name="bloom",
    hf=Layout(
        rules=[
            same("embed_tokens.weight", "transformer.word_embeddings.weight"),
            *for_kinds("embed_norm", "transformer.word_embeddings_layernorm"),
            *layer_rules("transformer.h.{}.", "self_attention"),
            *for_kinds("norm", "transformer.ln_f"),
            same("lm_head.weight", "lm_head.weight"),
        ],
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="transformer.",
    ),
)
