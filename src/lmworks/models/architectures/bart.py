"""BART: an encoder-decoder with learned positions and norms after each part.

`BartForConditionalGeneration`, `BartModel`. Source: Lewis et al. 2020, arXiv 1910.13461.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.classes import architecture_class
from lmworks.models.architectures.rules import Rule, for_kinds, same, with_ones
from lmworks.models.architectures.values import Values, activation, head_dim
from lmworks.models.config import (
    AttentionConfig,
    EmbeddingConfig,
    LayerConfig,
    LayerNormConfig,
    LearnedPositions,
    LMHeadConfig,
    MLPConfig,
    ModelConfig,
    repeated,
)

_CLASSES = ("ForConditionalGeneration", "Model")
_OFFSET = 2  # rows of the position table that no position takes


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    name = architecture_class(read) or _CLASSES[0]
    if not name.endswith(_CLASSES):
        raise UserError(f"architectures {name!r} is not supported: known: {', '.join(_CLASSES)}")
    read.only("normalize_before", (False,))  # of old configs, whose norms stand elsewhere
    # final_logits_bias, which transformers adds to the logits of a tied head.
    head = None if name.endswith("Model") else LMHeadConfig(bias=True)
    read.only("tie_word_embeddings", (True,))
    return _stack(
        read,
        "decoder",
        encoder=_stack(read, "encoder"),
        head=head,
        tie_word_embeddings=True,
    )


def _stack(
    read: Values, side: str, *, encoder: ModelConfig | None = None, **parts: Any
) -> ModelConfig:
    """The encoder, or the decoder that looks across to `encoder`."""
    hidden, decodes = read.count("d_model"), encoder is not None
    num_positions = read.count("max_position_embeddings", 1024)
    norm = LayerNormConfig(eps=1e-5)
    layer = stack_layer(read, side, norm=norm, placement="post", bias="qkvo")
    return ModelConfig(
        vocab_size=read.count("vocab_size"),
        hidden_size=hidden,
        layers=repeated(layer, read.count(f"{side}_layers")),
        embedding=EmbeddingConfig(
            scale=hidden**0.5 if read.flag("scale_embedding", False) else 1.0,
            norm=norm,
            shared=not decodes,
        ),
        positions=LearnedPositions(num_positions=num_positions + _OFFSET, offset=_OFFSET),
        norm=None,
        max_position_embeddings=num_positions,
        encoder=encoder,
        **{"head": None, **parts},
    )


def stack_layer(
    read: Values, side: str, *, norm: LayerNormConfig, placement: str, bias: str
) -> LayerConfig:
    """A layer of one side, "encoder" or "decoder", in BART and Whisper."""
    heads = read.count(f"{side}_attention_heads")
    attention = AttentionConfig(
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim(read.count("d_model"), heads),
        rope=None,
        causal=False,
        bias=bias,
    )
    decodes = side == "decoder"
    return LayerConfig(
        mixer=dataclasses.replace(attention, causal=decodes),
        cross_attention=attention if decodes else None,
        feed_forward=MLPConfig(
            intermediate_size=read.count(f"{side}_ffn_dim"),
            activation=activation(read, "activation_function", "gelu"),
            gated=False,
            bias=True,
        ),
        norm=norm,
        placement=placement,
    )


def stack_rules(own: str, theirs: str) -> list[Rule]:
    """The names of one side in BART and Whisper."""
    layer, block = f"{own}layers.{{}}.", f"{theirs}layers.{{}}."
    names = {
        "mixer_norm": "self_attn_layer_norm",
        "cross_attention_norm": "encoder_attn_layer_norm",
        "feed_forward.up_proj": "fc1",
        "feed_forward.down_proj": "fc2",
        "feed_forward_norm": "final_layer_norm",
    }
    for part, block_part in {"mixer": "self_attn", "cross_attention": "encoder_attn"}.items():
        names |= {f"{part}.{x}_proj": f"{block_part}.{x}_proj" for x in "qkv"}
        names[f"{part}.o_proj"] = f"{block_part}.out_proj"
    return [
        same(f"{own}embed_positions.weight", f"{theirs}embed_positions.weight"),
        *(rule for ours, name in names.items() for rule in for_kinds(layer + ours, block + name)),
    ]


BART = Architecture(
    name="bart",
    hf=Layout(
        rules=[
            same("embed_tokens.weight", "model.shared.weight"),
            same("lm_head.weight", "lm_head.weight"),
            with_ones("head.bias", "final_logits_bias"),
            *stack_rules("encoder.", "model.encoder."),
            *stack_rules("", "model.decoder."),
            *for_kinds("encoder.embed_norm", "model.encoder.layernorm_embedding"),
            *for_kinds("embed_norm", "model.decoder.layernorm_embedding"),
        ],
        read_config=config_from_hf,
        ignored=r"model\.(en|de)coder\.embed_tokens\.weight",
        prefix="model.",
        spare=r"final_logits_bias|lm_head\.weight",
    ),
)
