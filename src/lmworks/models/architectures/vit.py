"""ViT: an image as a row of patches. `ViTModel`, `ViTForImageClassification`.

Source: Dosovitskiy et al. 2021, arXiv 2010.11929.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.bert_layout import head_from_hf
from lmworks.models.architectures.classes import labels_to_hf, num_classes
from lmworks.models.architectures.rules import Rule, for_kinds, with_ones
from lmworks.models.architectures.values import HF_ACTIVATIONS, Values
from lmworks.models.architectures.vision_layout import patches, tower
from lmworks.models.config import ClassHeadConfig, FirstPooling, ModelConfig

_HEADS = {
    "ForImageClassification": lambda read: ClassHeadConfig(
        num_classes=num_classes(read), pooling=FirstPooling()
    )
}


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    inputs = patches(read, class_token=True, bias=True)
    return tower(
        read,
        hidden_act="gelu",
        eps=1e-12,
        bias="qkvo" if read.flag("qkv_bias", True) else "o",
        vocab_size=0,
        inputs=inputs,
        num_positions=inputs.num_positions,
        head=head_from_hf(read, _HEADS),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as one of ViT's classes."""
    layer = config.layers[0]
    mixer: Any = layer.mixer
    feed_forward: Any = layer.feed_forward
    inputs: Any = config.inputs
    values = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": mixer.num_attention_heads,
        "intermediate_size": feed_forward.intermediate_size,
        "hidden_act": HF_ACTIVATIONS[feed_forward.activation],
        "layer_norm_eps": layer.norm.eps,
        "image_size": inputs.image_size,
        "patch_size": inputs.patch_size,
        "num_channels": inputs.num_channels,
        "qkv_bias": "q" in mixer.bias,
        "torch_dtype": "float32",
    }
    if isinstance(config.head, ClassHeadConfig):
        values["architectures"] = ["ViTForImageClassification"]
        values |= labels_to_hf(config.head.num_classes)
    return values


def _rules() -> list[Rule]:
    layer, theirs = "layers.{}.", "vit.encoder.layer.{}."
    names = {
        "mixer_norm": "layernorm_before",
        "mixer.q_proj": "attention.attention.query",
        "mixer.k_proj": "attention.attention.key",
        "mixer.v_proj": "attention.attention.value",
        "mixer.o_proj": "attention.output.dense",
        "feed_forward_norm": "layernorm_after",
        "feed_forward.up_proj": "intermediate.dense",
        "feed_forward.down_proj": "output.dense",
    }
    return [
        with_ones("embed_inputs.class_token", "vit.embeddings.cls_token", 2),
        *for_kinds("embed_inputs.projection", "vit.embeddings.patch_embeddings.projection"),
        with_ones("embed_positions.weight", "vit.embeddings.position_embeddings"),
        *(rule for own, name in names.items() for rule in for_kinds(layer + own, theirs + name)),
        *for_kinds("norm", "vit.layernorm"),
        *for_kinds("head.out_proj", "classifier"),
    ]


VIT = Architecture(
    name="vit",
    hf=Layout(
        rules=_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="vit.",
        spare=r"vit\.pooler\..*",
    ),
)
