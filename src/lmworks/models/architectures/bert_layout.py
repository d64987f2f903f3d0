"""What BERT and its likes share: names, heads, and the common part of their configs.

They are post-norm encoders with learned positions that differ in names and in their heads. Which
head a folder holds is told by `architectures` in its config.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.classes import (
    architecture_class,
    labels_to_hf,
    num_classes,
    pooled_by_first,
)
from lmworks.models.architectures.rules import Rule, for_kinds, only_when, same
from lmworks.models.architectures.values import (
    HF_ACTIVATIONS,
    Values,
    activation,
    head_dim,
)
from lmworks.models.config import (
    AttentionConfig,
    ClassHeadConfig,
    EmbeddingConfig,
    HeadConfig,
    LayerNormConfig,
    LearnedPositions,
    LMHeadConfig,
    MLPConfig,
    ModelConfig,
)

# Endings of names in the files that were converted from TensorFlow.
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
IGNORED = r".*\bposition_ids"
Heads = Mapping[str, Callable[[Values], HeadConfig | None]]


def head_from_hf(read: Values, heads: Heads) -> HeadConfig | None:
    """The head that `architectures` names; none if it names nothing or the base model.

    Args:
        heads: what a class's name ends with -> how to read that head.
    Raises: UserError for a class that is not known.
    """
    name = architecture_class(read)
    if not name or name.endswith("Model"):
        return None
    for ending, make in heads.items():
        if name.endswith(ending):
            return make(read)
    raise UserError(
        f"architectures {name!r} is not supported: known: {', '.join(['Model', *heads])}"
    )


def num_types(read: Values) -> int:
    """How many segments the embedding tells apart. Raises: UserError for none."""
    count = read.count("type_vocab_size", 2)
    if count < 1:
        raise UserError("type_vocab_size must be at least 1")
    return count


def class_heads(transform: str) -> Heads:
    """Classes of a sequence by its first position, through a square layer; or of each token."""
    return {
        "ForSequenceClassification": lambda read: pooled_by_first(read, transform),
        "ForTokenClassification": lambda read: ClassHeadConfig(num_classes=num_classes(read)),
    }


def masked_head(activation: str | None, eps: float | None) -> Heads:
    """A masked language model's head; None: as the config says for the layers."""

    def make(read: Values) -> HeadConfig:
        return LMHeadConfig(
            bias=True,
            transform=activation or _activation(read),
            transform_norm=LayerNormConfig(eps=eps or _eps(read)),
        )

    return {"ForMaskedLM": make}


def _activation(read: Values) -> str:
    return activation(read, "hidden_act", "gelu")


def _eps(read: Values) -> float:
    return read.number("layer_norm_eps", 1e-12)


def encoder_from_hf(
    read: Values, heads: Heads, *, offset: int = 0, num_types: int, **parts: Any
) -> ModelConfig:
    """An encoder whose config has BERT's keys; `parts` are those of `ModelConfig.uniform`.

    Args:
        offset: rows of the position table that stand for padding.
        num_types: segments that the embedding tells apart.
    Raises: UserError for what is missing or not supported.
    """
    hidden, num_heads = read.count("hidden_size"), read.count("num_attention_heads")
    read.only("is_decoder", (False,))
    read.only("add_cross_attention", (False,))
    read.only("position_embedding_type", ("absolute",))
    return post_norm_encoder(
        vocab_size=read.count("vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=read.count("num_hidden_layers"),
        num_attention_heads=num_heads,
        intermediate_size=read.count("intermediate_size"),
        activation=_activation(read),
        norm=LayerNormConfig(eps=_eps(read)),
        num_positions=read.count("max_position_embeddings"),
        offset=offset,
        num_types=num_types,
        head=head_from_hf(read, heads),
        tie_word_embeddings=read.flag("tie_word_embeddings", True),
        **parts,
    )


def post_norm_encoder(
    *,
    hidden_size: int,
    num_attention_heads: int,
    intermediate_size: int,
    activation: str,
    norm: LayerNormConfig,
    num_positions: int,
    offset: int,
    num_types: int,
    embedding_size: int | None = None,
    **parts: Any,
) -> ModelConfig:
    """The stack itself; `parts` are those of `ModelConfig.uniform`. Raises: UserError."""
    if num_positions <= offset:
        raise UserError(f"max_position_embeddings {num_positions} leaves none beside {offset}")
    config = ModelConfig.uniform(
        hidden_size=hidden_size,
        mixer=AttentionConfig(
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_attention_heads,
            head_dim=head_dim(hidden_size, num_attention_heads),
            rope=None,
            causal=False,
            bias="qkvo",
        ),
        feed_forward=MLPConfig(
            intermediate_size=intermediate_size, activation=activation, gated=False, bias=True
        ),
        norm=norm,
        placement="post",
        embedding=EmbeddingConfig(type_vocab_size=num_types, norm=norm, size=embedding_size),
        positions=LearnedPositions(num_positions=num_positions, offset=offset),
        max_position_embeddings=num_positions - offset,
        **parts,
    )
    return dataclasses.replace(config, norm=None)  # the last layer ends in one


def with_patterns(config: ModelConfig, patterns: Sequence[Any]) -> ModelConfig:
    """`config` with a pattern, or None, for the attention of each layer."""
    layers = []
    for layer, pattern in zip(config.layers, patterns, strict=True):
        mixer: Any = layer.mixer
        layers.append(dataclasses.replace(layer, mixer=dataclasses.replace(mixer, pattern=pattern)))
    return dataclasses.replace(config, layers=tuple(layers))


def encoder_to_hf(config: ModelConfig, name: str, model_type: str) -> dict[str, Any]:
    """BERT's keys; `name` is what its classes' names begin with.

    It may raise whatever it likes for a model of other blocks.
    """
    layer = config.layers[0]
    mixer: Any = layer.mixer
    feed_forward: Any = layer.feed_forward
    positions: Any = config.positions
    return {
        **head_to_hf(config, name),
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": mixer.num_attention_heads,
        "intermediate_size": feed_forward.intermediate_size,
        "hidden_act": HF_ACTIVATIONS[feed_forward.activation],
        "layer_norm_eps": layer.norm.eps,
        "max_position_embeddings": positions.num_positions,
        "type_vocab_size": config.embedding.type_vocab_size,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
    }


def head_to_hf(config: ModelConfig, name: str) -> dict[str, Any]:
    """The class that the head makes of the model, and its labels."""
    head = config.head
    if not isinstance(head, ClassHeadConfig):
        return {"architectures": [name + ("Model" if head is None else "ForMaskedLM")]}
    task = "ForSequenceClassification" if head.pooling else "ForTokenClassification"
    return {"architectures": [name + task], **labels_to_hf(head.num_classes)}


def bert_rules(prefix: str) -> list[Rule]:
    """The names of embedding and layers in BERT, RoBERTa and ELECTRA."""
    layer, theirs = "layers.{}.", prefix + "encoder.layer.{}."
    names = {
        "mixer.q_proj": "attention.self.query",
        "mixer.k_proj": "attention.self.key",
        "mixer.v_proj": "attention.self.value",
        "mixer.o_proj": "attention.output.dense",
        "mixer_norm": "attention.output.LayerNorm",
        "feed_forward.up_proj": "intermediate.dense",
        "feed_forward.down_proj": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    }
    return [
        *embedding_rules(prefix),
        *(rule for own, name in names.items() for rule in for_kinds(layer + own, theirs + name)),
    ]


def embedding_rules(prefix: str) -> list[Rule]:
    """The names of the embedding."""
    return [
        same("embed_tokens.weight", f"{prefix}embeddings.word_embeddings.weight"),
        same("embed_types.weight", f"{prefix}embeddings.token_type_embeddings.weight"),
        same("embed_positions.weight", f"{prefix}embeddings.position_embeddings.weight"),
        *for_kinds("embed_norm", f"{prefix}embeddings.LayerNorm"),
    ]


def lm_head_rules(dense: str, norm: str, decoder: str, bias: str = "") -> list[Rule]:
    """A masked language model's head: its square layer and norm, its matrix, its tied bias."""
    rules = [
        *for_kinds("head.dense", dense),
        *for_kinds("head.norm", norm),
        same("head.bias", bias or f"{decoder}.bias"),
        *for_kinds("lm_head", decoder),
    ]
    return only_when(lambda config: isinstance(config.head, LMHeadConfig), rules)


def class_head_rules(dense: str, out_proj: str) -> list[Rule]:
    """A head of classes: `classifier` alone for tokens, `dense` and `out_proj` for sequences."""
    pooled = [*for_kinds("head.dense", dense), *for_kinds("head.out_proj", out_proj)]
    tokens = for_kinds("head.out_proj", "classifier")
    return [
        *only_when(lambda config: _classes(config, pooled=True), pooled),
        *only_when(lambda config: _classes(config, pooled=False), tokens),
    ]


def _classes(config: ModelConfig, *, pooled: bool) -> bool:
    head = config.head
    return isinstance(head, ClassHeadConfig) and (head.pooling is not None) == pooled
