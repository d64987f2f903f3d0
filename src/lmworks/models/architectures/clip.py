"""CLIP: a causal text tower and a ViT whose vectors meet. `CLIPModel`.

Source: Radford et al. 2021, arXiv 2103.00020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.rules import Rule, for_kinds, same
from lmworks.models.architectures.values import Values
from lmworks.models.architectures.vision_layout import clip_layers, patches, tower
from lmworks.models.config import (
    EmbeddingConfig,
    EmbeddingHeadConfig,
    FirstPooling,
    LayerNormConfig,
    ModelConfig,
    TokenPooling,
    TwoTowerConfig,
)

# The sizes that config.json leaves out where they are those of the first CLIP, ViT-B/32.
_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
# Configs from before the end token was told right; it is the largest id then.
_WRONG_END = 2


def config_from_hf(values: Mapping[str, Any]) -> TwoTowerConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    size = read.count("projection_dim", 512)
    text = tower_values(read, "text_config", _TEXT)
    vision = tower_values(read, "vision_config", _VISION)
    return TwoTowerConfig(text=_text(text, size), vision=_vision(vision, size))


def tower_values(read: Values, name: str, defaults: Mapping[str, Any]) -> Values:
    """One tower's values: those under `name`, else under its name with `_dict`, else defaults.

    Raises: UserError if they are no object.
    """
    given = read.raw(f"{name}_dict", {}) or read.raw(name, {})
    if not isinstance(given, Mapping):
        raise UserError(f"{name} must be an object, not {given!r}")
    told = {key: value for key, value in given.items() if value is not None}
    return Values({**defaults, **told})


def _text(read: Values, size: int) -> ModelConfig:
    end = read.count("eos_token_id", 49407)
    return tower(
        read,
        hidden_act="quick_gelu",
        eps=1e-5,
        causal=True,
        vocab_size=read.count("vocab_size"),
        num_positions=read.count("max_position_embeddings"),
        head=EmbeddingHeadConfig(
            pooling=TokenPooling(token_id=None if end == _WRONG_END else end), size=size
        ),
    )


def _vision(read: Values, size: int) -> ModelConfig:
    inputs = patches(read, class_token=True, bias=False)
    return tower(
        read,
        hidden_act="quick_gelu",
        eps=1e-5,
        vocab_size=0,
        inputs=inputs,
        num_positions=inputs.num_positions,
        embedding=EmbeddingConfig(norm=LayerNormConfig(eps=read.number("layer_norm_eps", 1e-5))),
        head=EmbeddingHeadConfig(pooling=FirstPooling(), size=size),
    )


def _rules() -> list[Rule]:
    text, vision = "text_model.", "vision_model."
    return [
        same("logit_scale", "logit_scale"),
        same("text.embed_tokens.weight", f"{text}embeddings.token_embedding.weight"),
        same("text.embed_positions.weight", f"{text}embeddings.position_embedding.weight"),
        *clip_layers("text.", text),
        *for_kinds("text.norm", f"{text}final_layer_norm"),
        same("text.head.out_proj.weight", "text_projection.weight"),
        same("vision.embed_inputs.class_token", f"{vision}embeddings.class_embedding"),
        *for_kinds("vision.embed_inputs.projection", f"{vision}embeddings.patch_embedding"),
        same("vision.embed_positions.weight", f"{vision}embeddings.position_embedding.weight"),
        *for_kinds("vision.embed_norm", f"{vision}pre_layrnorm"),
        *clip_layers("vision.", vision),
        *for_kinds("vision.norm", f"{vision}post_layernorm"),
        same("vision.head.out_proj.weight", "visual_projection.weight"),
    ]


CLIP = Architecture(
    name="clip",
    hf=Layout(rules=_rules(), read_config=config_from_hf, ignored=r".*\.position_ids"),
)
