"""RoBERTa: BERT whose positions begin after the id of padding, with heads of its own.

`RobertaModel`, `RobertaForMaskedLM`, `RobertaForSequenceClassification`,
`RobertaForTokenClassification`; XLM-RoBERTa and CamemBERT have the same names under other types.
Source: Liu et al. 2019, arXiv 1907.11692. Differs: transformers gives padding the position of
padding; here it goes on counting, which no other token sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.bert_layout import (
    IGNORED,
    OLD_NAMES,
    bert_rules,
    class_head_rules,
    class_heads,
    encoder_from_hf,
    encoder_to_hf,
    lm_head_rules,
    masked_head,
    num_types,
)
from lmworks.models.architectures.values import Values
from lmworks.models.config import ModelConfig

_HEADS = {**masked_head("gelu", None), **class_heads("tanh")}


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    offset = read.count("pad_token_id", 1) + 1
    return encoder_from_hf(read, _HEADS, offset=offset, num_types=num_types(read))


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as one of RoBERTa's classes."""
    positions: Any = config.positions
    return encoder_to_hf(config, "Roberta", "roberta") | {"pad_token_id": positions.offset - 1}


_LAYOUT = Layout(
    rules=[
        *bert_rules("roberta."),
        *lm_head_rules("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
        *class_head_rules("classifier.dense", "classifier.out_proj"),
    ],
    read_config=config_from_hf,
    write_config=config_to_hf,
    ignored=IGNORED,
    prefix="roberta.",
    spare=r"roberta\.pooler\..*|lm_head\.(decoder\.)?bias",
    renamed=OLD_NAMES,
)

ROBERTA = Architecture(name="roberta", hf=_LAYOUT)
XLM_ROBERTA = Architecture(
    name="xlm-roberta",
    hf=Layout(
        rules=_LAYOUT.rules,
        read_config=config_from_hf,
        ignored=IGNORED,
        prefix="roberta.",
        spare=_LAYOUT.spare,
    ),
)
