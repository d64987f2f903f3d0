"""DistilBERT: BERT without token types and pooler, under keys and names of its own.

`DistilBertModel`, `DistilBertForMaskedLM`, `DistilBertForSequenceClassification`,
`DistilBertForTokenClassification`. Source: Sanh et al. 2019, arXiv 1910.01108.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.bert_layout import (
    IGNORED,
    class_head_rules,
    class_heads,
    embedding_rules,
    head_from_hf,
    head_to_hf,
    lm_head_rules,
    post_norm_encoder,
)
from lmworks.models.architectures.rules import Rule, for_kinds
from lmworks.models.architectures.values import HF_ACTIVATIONS, Values, activation
from lmworks.models.config import LayerNormConfig, LMHeadConfig, ModelConfig

_NORM = LayerNormConfig(eps=1e-12)


def _activation(read: Values) -> str:
    return activation(read, "activation", "gelu")


def _masked(read: Values) -> LMHeadConfig:
    return LMHeadConfig(bias=True, transform=_activation(read), transform_norm=_NORM)


_HEADS = {"ForMaskedLM": _masked, **class_heads("relu")}


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    return post_norm_encoder(
        vocab_size=read.count("vocab_size"),
        hidden_size=read.count("dim"),
        num_hidden_layers=read.count("n_layers"),
        num_attention_heads=read.count("n_heads"),
        intermediate_size=read.count("hidden_dim"),
        activation=_activation(read),
        norm=_NORM,
        num_positions=read.count("max_position_embeddings"),
        offset=0,
        num_types=0,
        head=head_from_hf(read, _HEADS),
        tie_word_embeddings=read.flag("tie_word_embeddings", True),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as one of DistilBERT's classes."""
    layer = config.layers[0]
    mixer: Any = layer.mixer
    feed_forward: Any = layer.feed_forward
    return {
        **head_to_hf(config, "DistilBert"),
        "model_type": "distilbert",
        "vocab_size": config.vocab_size,
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": mixer.num_attention_heads,
        "hidden_dim": feed_forward.intermediate_size,
        "activation": HF_ACTIVATIONS[feed_forward.activation],
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
    }


def _rules() -> list[Rule]:
    layer, theirs = "layers.{}.", "distilbert.transformer.layer.{}."
    names = {
        "mixer.q_proj": "attention.q_lin",
        "mixer.k_proj": "attention.k_lin",
        "mixer.v_proj": "attention.v_lin",
        "mixer.o_proj": "attention.out_lin",
        "mixer_norm": "sa_layer_norm",
        "feed_forward.up_proj": "ffn.lin1",
        "feed_forward.down_proj": "ffn.lin2",
        "feed_forward_norm": "output_layer_norm",
    }
    return [
        *embedding_rules("distilbert."),
        *(rule for own, name in names.items() for rule in for_kinds(layer + own, theirs + name)),
        *lm_head_rules("vocab_transform", "vocab_layer_norm", "vocab_projector"),
        *class_head_rules("pre_classifier", "classifier"),
    ]


DISTILBERT = Architecture(
    name="distilbert",
    hf=Layout(
        rules=_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        ignored=IGNORED,
        prefix="distilbert.",
    ),
)
