"""Longformer: RoBERTa whose attention is a window and a few global tokens.

`LongformerModel`, `LongformerForMaskedLM`, `LongformerForSequenceClassification` (whose first token
is global), `LongformerForTokenClassification`. Other global tokens are named with each input.
Source: Beltagy et al. 2020, arXiv 2004.05150. Differs: padding goes on counting positions, as told
in `roberta`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import UserError
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
from lmworks.models.architectures.rules import for_kinds
from lmworks.models.architectures.values import Values
from lmworks.models.config import ClassHeadConfig, LongformerPattern, ModelConfig

_HEADS = {**masked_head("gelu", None), **class_heads("tanh")}
_LAYER, _THEIRS = "layers.{}.mixer.pattern.", "longformer.encoder.layer.{}.attention.self."


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    offset = read.count("pad_token_id", 1) + 1
    config = encoder_from_hf(read, _HEADS, offset=offset, num_types=num_types(read))
    num_global = _num_global(config)
    return with_patterns(
        config,
        [
            LongformerPattern(window=window, num_global_tokens=num_global)
            for window in _windows(read, config.num_hidden_layers)
        ],
    )


def _num_global(config: ModelConfig) -> int:
    """Their classifier of sequences makes the first token global, nothing else does by itself."""
    return int(isinstance(config.head, ClassHeadConfig) and config.head.pooling is not None)


def _windows(read: Values, num_layers: int) -> list[int]:
    given = read.raw("attention_window", 512)
    windows = given if isinstance(given, list) else [given] * num_layers
    if len(windows) != num_layers:
        raise UserError(f"attention_window names {len(windows)} layers of {num_layers}")
    return windows


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as one of Longformer's classes."""
    positions: Any = config.positions
    mixers: list[Any] = [layer.mixer for layer in config.layers]
    plain = with_patterns(config, [None] * len(mixers))
    if any(mixer.pattern.num_global_tokens != _num_global(config) for mixer in mixers):
        raise UserError("transformers' Longformer has other global tokens")
    return encoder_to_hf(plain, "Longformer", "longformer") | {
        "pad_token_id": positions.offset - 1,
        "attention_window": [mixer.pattern.window for mixer in mixers],
    }


LONGFORMER = Architecture(
    name="longformer",
    hf=Layout(
        rules=[
            *bert_rules("longformer."),
            *(
                rule
                for own, name in (("q", "query"), ("k", "key"), ("v", "value"))
                for rule in for_kinds(f"{_LAYER}{own}_proj", f"{_THEIRS}{name}_global")
            ),
            *lm_head_rules(
                "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"
            ),
            *class_head_rules("classifier.dense", "classifier.out_proj"),
        ],
        read_config=config_from_hf,
        write_config=config_to_hf,
        ignored=IGNORED,
        prefix="longformer.",
        spare=r"longformer\.pooler\..*|lm_head\.(decoder\.)?bias",
    ),
)
