"""Whisper: sound in, text out. `WhisperForConditionalGeneration`, `WhisperModel`.

The encoder's positions are fixed sines and cosines, which files hold as a table all the same; it
is read as one of learned positions. Source: Radford et al. 2022, arXiv 2212.04356.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.bart import stack_layer, stack_rules
from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.classes import architecture_class
from lmworks.models.architectures.rules import for_kinds, same
from lmworks.models.architectures.values import Values
from lmworks.models.config import (
    AudioEmbeddingConfig,
    LayerNormConfig,
    LearnedPositions,
    LMHeadConfig,
    ModelConfig,
    repeated,
)

_CLASSES = ("ForConditionalGeneration", "Model")


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    name = architecture_class(read) or _CLASSES[0]
    if not name.endswith(_CLASSES):
        raise UserError(f"architectures {name!r} is not supported: known: {', '.join(_CLASSES)}")
    encoder = _stack(
        read,
        "encoder",
        read.count("max_source_positions", 1500),
        inputs=AudioEmbeddingConfig(num_mel_bins=read.count("num_mel_bins", 80)),
        vocab_size=0,
        head=None,
    )
    return _stack(
        read,
        "decoder",
        read.count("max_target_positions", 448),
        vocab_size=read.count("vocab_size"),
        head=None if name.endswith("Model") else LMHeadConfig(),
        tie_word_embeddings=read.flag("tie_word_embeddings", True),
        encoder=encoder,
    )


def _stack(read: Values, side: str, num_positions: int, **parts: Any) -> ModelConfig:
    norm = LayerNormConfig(eps=1e-5)
    layer = stack_layer(read, side, norm=norm, placement="pre", bias="qvo")
    return ModelConfig(
        hidden_size=read.count("d_model"),
        layers=repeated(layer, read.count(f"{side}_layers")),
        norm=norm,
        positions=LearnedPositions(num_positions=num_positions),
        max_position_embeddings=num_positions,
        **parts,
    )


WHISPER = Architecture(
    name="whisper",
    hf=Layout(
        rules=[
            same("embed_tokens.weight", "model.decoder.embed_tokens.weight"),
            same("lm_head.weight", "proj_out.weight"),
            *for_kinds("encoder.embed_inputs.conv1", "model.encoder.conv1"),
            *for_kinds("encoder.embed_inputs.conv2", "model.encoder.conv2"),
            *stack_rules("encoder.", "model.encoder."),
            *stack_rules("", "model.decoder."),
            *for_kinds("encoder.norm", "model.encoder.layer_norm"),
            *for_kinds("norm", "model.decoder.layer_norm"),
        ],
        read_config=config_from_hf,
        prefix="model.",
        spare=r"proj_out\.weight",
    ),
)
