"""SigLIP: two towers with a score of its own for each pair. `SiglipModel`.

The text's last position is pooled, padding or not: the model was trained on texts padded to the
full length, without a mask. Source: Zhai et al. 2023, arXiv 2303.15343.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.clip import tower_values
from lmworks.models.architectures.rules import Rule, for_kinds, fused, same, with_ones
from lmworks.models.architectures.values import Values
from lmworks.models.architectures.vision_layout import clip_layers, mlp, patches, tower
from lmworks.models.config import (
    AttentionPooling,
    EmbeddingHeadConfig,
    LastPooling,
    LayerNormConfig,
    ModelConfig,
    TwoTowerConfig,
)

# The sizes that config.json leaves out where they are those of SigLIP base, patch 16.
_TEXT = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
_ACTIVATION, _EPS = "gelu_pytorch_tanh", 1e-6


def config_from_hf(values: Mapping[str, Any]) -> TwoTowerConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    return TwoTowerConfig(
        text=_text(tower_values(read, "text_config", _TEXT)),
        vision=_vision(tower_values(read, "vision_config", _VISION)),
        logit_bias=True,
    )


def _text(read: Values) -> ModelConfig:
    size = read.count("projection_size", read.count("hidden_size"))
    return tower(
        read,
        hidden_act=_ACTIVATION,
        eps=_EPS,
        vocab_size=read.count("vocab_size"),
        num_positions=read.count("max_position_embeddings"),
        head=EmbeddingHeadConfig(pooling=LastPooling(padding=True), size=size, bias=True),
    )


def _vision(read: Values) -> ModelConfig:
    read.only("vision_use_head", (True,))
    inputs = patches(read, class_token=False, bias=True)
    pooling = AttentionPooling(
        num_attention_heads=read.count("num_attention_heads"),
        feed_forward=mlp(read, _ACTIVATION),
        norm=LayerNormConfig(eps=read.number("layer_norm_eps", _EPS)),
    )
    return tower(
        read,
        hidden_act=_ACTIVATION,
        eps=_EPS,
        vocab_size=0,
        inputs=inputs,
        num_positions=inputs.num_positions,
        head=EmbeddingHeadConfig(pooling=pooling),
    )


def _pooler_rules() -> list[Rule]:
    own, theirs = "vision.head.pooler.", "vision_model.head."
    return [
        with_ones(f"{own}query", f"{theirs}probe", 2),
        *(
            fused(
                [f"{own}{name}_proj.{kind}" for name in "qkv"],
                f"{theirs}attention.in_proj_{kind}",
                sizes=lambda config, _: [config.vision.hidden_size] * 3,
            )
            for kind in ("weight", "bias")
        ),
        *for_kinds(f"{own}o_proj", f"{theirs}attention.out_proj"),
        *for_kinds(f"{own}norm", f"{theirs}layernorm"),
        *for_kinds(f"{own}feed_forward.up_proj", f"{theirs}mlp.fc1"),
        *for_kinds(f"{own}feed_forward.down_proj", f"{theirs}mlp.fc2"),
    ]


def _rules() -> list[Rule]:
    text, vision = "text_model.", "vision_model."
    return [
        with_ones("logit_scale", "logit_scale"),
        with_ones("logit_bias", "logit_bias"),
        same("text.embed_tokens.weight", f"{text}embeddings.token_embedding.weight"),
        same("text.embed_positions.weight", f"{text}embeddings.position_embedding.weight"),
        *clip_layers("text.", text),
        *for_kinds("text.norm", f"{text}final_layer_norm"),
        *for_kinds("text.head.out_proj", f"{text}head"),
        *for_kinds("vision.embed_inputs.projection", f"{vision}embeddings.patch_embedding"),
        same("vision.embed_positions.weight", f"{vision}embeddings.position_embedding.weight"),
        *clip_layers("vision.", vision),
        *for_kinds("vision.norm", f"{vision}post_layernorm"),
        *_pooler_rules(),
    ]


SIGLIP = Architecture(
    name="siglip",
    hf=Layout(rules=_rules(), read_config=config_from_hf, ignored=r".*\.position_ids"),
)
