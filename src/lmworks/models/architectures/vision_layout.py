"""What ViT and the towers of CLIP and SigLIP share: pre-norm encoders with learned positions."""

from __future__ import annotations

from typing import Any

from lmworks.models.architectures.rules import Rule, for_kinds
from lmworks.models.architectures.values import Values, activation, head_dim
from lmworks.models.config import (
    AttentionConfig,
    LayerNormConfig,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    PatchEmbeddingConfig,
)


def tower(
    read: Values,
    *,
    hidden_act: str,
    eps: float,
    num_positions: int,
    bias: str = "qkvo",
    causal: bool = False,
    **parts: Any,
) -> ModelConfig:
    """One encoder. `hidden_act` and `eps` are defaults; `parts` those of `ModelConfig`."""
    hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
    return ModelConfig.uniform(
        hidden_size=hidden,
        num_hidden_layers=read.count("num_hidden_layers"),
        mixer=AttentionConfig(
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=head_dim(hidden, heads),
            rope=None,
            causal=causal,
            bias=bias,
        ),
        feed_forward=mlp(read, hidden_act),
        norm=LayerNormConfig(eps=read.number("layer_norm_eps", eps)),
        positions=LearnedPositions(num_positions=num_positions),
        max_position_embeddings=num_positions,
        **parts,
    )


def mlp(read: Values, hidden_act: str) -> MLPConfig:
    """The feed-forward of a layer; `hidden_act` is the default."""
    return MLPConfig(
        intermediate_size=read.count("intermediate_size"),
        activation=activation(read, "hidden_act", hidden_act),
        gated=False,
        bias=True,
    )


def patches(read: Values, *, class_token: bool, bias: bool) -> PatchEmbeddingConfig:
    """How the config cuts its images."""
    return PatchEmbeddingConfig(
        image_size=read.count("image_size"),
        patch_size=read.count("patch_size"),
        num_channels=read.count("num_channels", 3),
        class_token=class_token,
        bias=bias,
    )


def clip_layers(own: str, theirs: str) -> list[Rule]:
    """The names of the layers in CLIP's and SigLIP's towers."""
    layer, block = f"{own}layers.{{}}.", f"{theirs}encoder.layers.{{}}."
    names = {
        "mixer_norm": "layer_norm1",
        "mixer.q_proj": "self_attn.q_proj",
        "mixer.k_proj": "self_attn.k_proj",
        "mixer.v_proj": "self_attn.v_proj",
        "mixer.o_proj": "self_attn.out_proj",
        "feed_forward_norm": "layer_norm2",
        "feed_forward.up_proj": "mlp.fc1",
        "feed_forward.down_proj": "mlp.fc2",
    }
    return [rule for ours, name in names.items() for rule in for_kinds(layer + ours, block + name)]
