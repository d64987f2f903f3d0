"""MPNet: RoBERTa's positions, and a bias by distance that all layers share.

`MPNetModel`, `MPNetForMaskedLM`, `MPNetForSequenceClassification`, `MPNetForTokenClassification`.
Source: Song et al. 2020, arXiv 2004.09297.
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
    encoder_from_hf,
    encoder_to_hf,
    lm_head_rules,
    masked_head,
)
from lmworks.models.architectures.rules import Rule, for_kinds, same
from lmworks.models.architectures.values import Values
from lmworks.models.config import ModelConfig, RelativePositions

_HEADS = {**masked_head("gelu", None), **class_heads("tanh")}
_OFFSET = 2


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    # transformers sizes the table by this key, but always cuts distances into 32 buckets.
    read.only("relative_attention_num_buckets", (32,))
    return encoder_from_hf(
        read, _HEADS, offset=_OFFSET, num_types=0, relative_positions=RelativePositions()
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as one of MPNet's classes."""
    positions: Any = config.relative_positions
    return encoder_to_hf(config, "MPNet", "mpnet") | {
        "relative_attention_num_buckets": positions.num_buckets,
        "pad_token_id": _OFFSET - 1,
    }


def _rules() -> list[Rule]:
    layer, theirs = "layers.{}.", "mpnet.encoder.layer.{}."
    names = {
        "mixer.q_proj": "attention.attn.q",
        "mixer.k_proj": "attention.attn.k",
        "mixer.v_proj": "attention.attn.v",
        "mixer.o_proj": "attention.attn.o",
        "mixer_norm": "attention.LayerNorm",
        "feed_forward.up_proj": "intermediate.dense",
        "feed_forward.down_proj": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    }
    return [
        *embedding_rules("mpnet."),
        same("relative_bias.weight", "mpnet.encoder.relative_attention_bias.weight"),
        *(rule for own, name in names.items() for rule in for_kinds(layer + own, theirs + name)),
        *lm_head_rules("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
        *class_head_rules("classifier.dense", "classifier.out_proj"),
    ]


MPNET = Architecture(
    name="mpnet",
    hf=Layout(
        rules=_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        ignored=IGNORED,
        prefix="mpnet.",
        spare=r"mpnet\.pooler\..*|lm_head\.(decoder\.)?bias",
    ),
)
