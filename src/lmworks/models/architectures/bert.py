"""BERT: token types, a pooler with tanh. MiniLM, BGE and E5 are BERT as well.

`BertModel`, `BertForMaskedLM`, `BertForSequenceClassification`, `BertForTokenClassification`.
Source: Devlin et al. 2019, arXiv 1810.04805.
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

_MASKED = masked_head(None, None)
# The model as it was pre-trained holds a second head, for the next sentence, which is left out.
_HEADS = {**_MASKED, "ForPreTraining": _MASKED["ForMaskedLM"], **class_heads("tanh")}


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    return encoder_from_hf(read, _HEADS, num_types=num_types(read))


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as one of BERT's classes."""
    return encoder_to_hf(config, "Bert", "bert")


BERT = Architecture(
    name="bert",
    hf=Layout(
        rules=[
            *bert_rules("bert."),
            *lm_head_rules(
                "cls.predictions.transform.dense",
                "cls.predictions.transform.LayerNorm",
                "cls.predictions.decoder",
                "cls.predictions.bias",
            ),
            *class_head_rules("bert.pooler.dense", "classifier"),
        ],
        read_config=config_from_hf,
        write_config=config_to_hf,
        ignored=IGNORED,
        prefix="bert.",
        spare=r"bert\.pooler\..*|cls\.seq_relationship\..*|cls\.predictions\.(decoder\.)?bias",
        renamed=OLD_NAMES,
    ),
)
