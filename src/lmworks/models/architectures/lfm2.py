"""LFM2: gated short convolutions with attention in some layers. `Lfm2ForCausalLM`.

Source: Liquid AI 2025, LFM2 technical report, arXiv 2511.23404.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.llama_layout import attention_from_hf, common_to_hf
from lmworks.models.architectures.rope import rope_from_hf
from lmworks.models.architectures.rules import Rule, for_kinds, same
from lmworks.models.architectures.values import Values
from lmworks.models.config import (
    AttentionConfig,
    LayerConfig,
    MLPConfig,
    ModelConfig,
    RMSNormConfig,
    ShortConvolutionConfig,
)
from lmworks.models.config.base import BlockConfig
from lmworks.models.config.model import repeated

_ATTENTION, _CONVOLUTION = "full_attention", "conv"


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    norm = RMSNormConfig(eps=read.number("norm_eps", 1e-5))
    mixers: dict[str, BlockConfig] = {
        _ATTENTION: attention_from_hf(read, rope=rope_from_hf(read, theta=1000000.0), qk_norm=norm),
        _CONVOLUTION: ShortConvolutionConfig(
            conv_kernel=read.count("conv_L_cache", 3), bias=read.flag("conv_bias", False)
        ),
    }
    layer = LayerConfig(
        mixer=mixers[_ATTENTION],
        feed_forward=MLPConfig(intermediate_size=_intermediate_size(read)),
        norm=norm,
    )
    count = len(repeated(layer, read.count("num_hidden_layers")))
    return ModelConfig(
        vocab_size=read.count("vocab_size"),
        hidden_size=read.count("hidden_size"),
        layers=tuple(
            LayerConfig(mixer=mixers[kind], feed_forward=layer.feed_forward, norm=norm)
            for kind in _layer_types(read, count)
        ),
        norm=norm,
        tie_word_embeddings=read.flag("tie_embedding", read.flag("tie_word_embeddings", True)),
        max_position_embeddings=read.count("max_position_embeddings", 128000),
    )


def _layer_types(read: Values, count: int) -> list[str]:
    attends = read.items("full_attn_idxs", list(range(count)))
    default = [_ATTENTION if i in attends else _CONVOLUTION for i in range(count)]
    kinds = read.items("layer_types", default)
    if len(kinds) != count or set(kinds) - {_ATTENTION, _CONVOLUTION}:
        raise UserError(
            f"layer_types must name {_ATTENTION} or {_CONVOLUTION} for each of {count} layers, "
            f"not {kinds!r}"
        )
    return kinds


def _intermediate_size(read: Values) -> int:
    size = read.count("block_ff_dim", read.count("intermediate_size", 12288))
    if not read.flag("block_auto_adjust_ff_dim", True):
        return size
    size = int(read.number("block_ffn_dim_multiplier", 1.0) * int(2 * size / 3))
    multiple = max(1, read.count("block_multiple_of", 256))
    return multiple * -(-size // multiple)


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `Lfm2ForCausalLM`."""
    kinds = [
        _ATTENTION if isinstance(layer.mixer, AttentionConfig) else _CONVOLUTION
        for layer in config.layers
    ]
    attention = config.layers[kinds.index(_ATTENTION)]
    convolution: Any = config.layers[kinds.index(_CONVOLUTION)].mixer
    common = common_to_hf(config.with_layers(mixer=attention.mixer), "Lfm2ForCausalLM", "lfm2")
    for absent in ("head_dim", "hidden_act", "attention_dropout"):
        common.pop(absent)
    return common | {
        "norm_eps": common.pop("rms_norm_eps"),
        "layer_types": kinds,
        "conv_L_cache": convolution.conv_kernel,
        "conv_bias": convolution.bias,
        "block_auto_adjust_ff_dim": False,
    }


def _rules() -> list[Rule]:
    layer, theirs = "layers.{}.", "model.layers.{}."
    attention = {name: name for name in ("q_proj", "k_proj", "v_proj")}
    attention |= {"o_proj": "out_proj", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}
    feed_forward = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    names = {f"mixer.{own}": f"self_attn.{name}" for own, name in attention.items()}
    names |= {f"mixer.{name}": f"conv.{name}" for name in ("in_proj", "conv", "out_proj")}
    names |= {f"feed_forward.{own}": f"feed_forward.{name}" for own, name in feed_forward.items()}
    names |= {"mixer_norm": "operator_norm", "feed_forward_norm": "ffn_norm"}
    return [
        same("embed_tokens.weight", "model.embed_tokens.weight"),
        *(rule for own, name in names.items() for rule in for_kinds(layer + own, theirs + name)),
        same("norm.weight", "model.embedding_norm.weight"),
        same("lm_head.weight", "lm_head.weight"),
    ]


LFM2 = Architecture(
    name="lfm2",
    hf=Layout(
        rules=_rules(), read_config=config_from_hf, write_config=config_to_hf, prefix="model."
    ),
)
