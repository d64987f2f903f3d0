"""BigBird: BERT whose attention sees blocks: neighbours, the two ends, and some drawn at random.

`BigBirdModel`, `BigBirdForMaskedLM`, `BigBirdForSequenceClassification`,
`BigBirdForTokenClassification`. transformers draws no blocks in eval mode: its table then names the
first block for each, and so do we for models that come from there (`BigBirdPattern.seed` None).
Source: Zaheer et al. 2020, arXiv 2007.14062.
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
    with_patterns,
)
from lmworks.models.architectures.values import Values, activation
from lmworks.models.config import BigBirdPattern, ModelConfig


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values({"hidden_act": "gelu_new", "max_position_embeddings": 4096, **values})
    heads = {**masked_head(None, None), **class_heads(activation(read, "hidden_act", "gelu_new"))}
    read.only("rescale_embeddings", (False,))
    read.only("use_bias", (True,))
    config = encoder_from_hf(read, heads, num_types=num_types(read))
    if read.only("attention_type", ("block_sparse", "original_full")) == "original_full":
        return config
    pattern = BigBirdPattern(
        block_size=read.count("block_size", 64),
        num_random_blocks=read.count("num_random_blocks", 3),
        seed=None,
    )
    return with_patterns(config, [pattern] * config.num_hidden_layers)


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as one of BigBird's classes."""
    mixer: Any = config.layers[0].mixer
    plain = with_patterns(config, [None] * config.num_hidden_layers)
    return encoder_to_hf(plain, "BigBird", "big_bird") | {
        "attention_type": "block_sparse",
        "block_size": mixer.pattern.block_size,
        "num_random_blocks": mixer.pattern.num_random_blocks,
    }


BIG_BIRD = Architecture(
    name="big_bird",
    hf=Layout(
        rules=[
            *bert_rules("bert."),
            *lm_head_rules(
                "cls.predictions.transform.dense",
                "cls.predictions.transform.LayerNorm",
                "cls.predictions.decoder",
                "cls.predictions.bias",
            ),
            *class_head_rules("classifier.dense", "classifier.out_proj"),
        ],
        read_config=config_from_hf,
        write_config=config_to_hf,
        ignored=IGNORED,
        prefix="bert.",
        spare=r"bert\.pooler\..*|cls\.predictions\.(decoder\.)?bias",
    ),
)
