"""ELECTRA: BERT with an embedding of its own size. Generator, discriminator, and their heads.

`ElectraModel`, `ElectraForMaskedLM` (the generator), `ElectraForPreTraining` (the discriminator:
a number for each token, above 0 where it was replaced), `ElectraForSequenceClassification`,
`ElectraForTokenClassification`. Source: Clark et al. 2020, arXiv 2003.10555.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.bert_layout import (
    IGNORED,
    bert_rules,
    class_head_rules,
    class_heads,
    encoder_from_hf,
    encoder_to_hf,
    lm_head_rules,
    masked_head,
    num_types,
)
from lmworks.models.architectures.rules import for_kinds, only_when
from lmworks.models.architectures.values import Values, activation
from lmworks.models.config import ModelConfig, ValueHeadConfig

_HEADS = {
    **masked_head("gelu", None),
    "ForPreTraining": lambda read: ValueHeadConfig(
        transform=activation(read, "hidden_act", "gelu"), bias=True
    ),
    **class_heads("gelu"),
}


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    size = read.count("embedding_size", 128)
    return encoder_from_hf(
        read,
        _HEADS,
        num_types=num_types(read),
        embedding_size=None if size == read.count("hidden_size") else size,
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as one of ELECTRA's classes."""
    values = encoder_to_hf(config, "Electra", "electra")
    if isinstance(config.head, ValueHeadConfig):
        values["architectures"] = ["ElectraForPreTraining"]
    return values | {"embedding_size": config.embedding_size}


_VALUES = [
    *for_kinds("head.dense", "discriminator_predictions.dense"),
    *for_kinds("head.out_proj", "discriminator_predictions.dense_prediction"),
]

ELECTRA = Architecture(
    name="electra",
    hf=Layout(
        rules=[
            *bert_rules("electra."),
            *for_kinds("embed_proj", "electra.embeddings_project"),
            *lm_head_rules(
                "generator_predictions.dense",
                "generator_predictions.LayerNorm",
                "generator_lm_head",
            ),
            *class_head_rules("classifier.dense", "classifier.out_proj"),
            *only_when(lambda config: isinstance(config.head, ValueHeadConfig), _VALUES),
        ],
        read_config=config_from_hf,
        write_config=config_to_hf,
        ignored=IGNORED,
        prefix="electra.",
    ),
)
