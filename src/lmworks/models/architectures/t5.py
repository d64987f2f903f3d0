"""T5, Flan-T5 and mT5: a bias by distance, RMSNorm, scores that are not scaled.

`T5ForConditionalGeneration`, `T5Model`, `T5EncoderModel`. Version 1.0 ties its head and scales the
states before it; 1.1 has a head of its own and gated feed-forwards. Files hold the bias by
distance in the first layer, whose values all layers use. Source: Raffel et al. 2020,
arXiv 1910.10683; Shazeer 2020, arXiv 2002.05202 (1.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.classes import architecture_class
from lmworks.models.architectures.rules import Rule, only_when, same
from lmworks.models.architectures.values import ACTIVATIONS, Values
from lmworks.models.config import (
    AttentionConfig,
    EmbeddingConfig,
    LayerConfig,
    LMHeadConfig,
    MLPConfig,
    ModelConfig,
    RelativePositions,
    RMSNormConfig,
    repeated,
)

_CLASSES = ("ForConditionalGeneration", "EncoderModel", "Model")


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    name = architecture_class(read) or _CLASSES[0]
    if not name.endswith(_CLASSES):
        raise UserError(f"architectures {name!r} is not supported: known: {', '.join(_CLASSES)}")
    if name.endswith("EncoderModel"):
        return _stack(read, shared=False)
    num_layers = read.count("num_decoder_layers", read.count("num_layers"))
    tied = read.flag("tie_word_embeddings", True)
    scaled = read.flag("scale_decoder_outputs", tied)
    scale = read.count("d_model") ** -0.5 if scaled else 1.0
    head = None if name.endswith("Model") else LMHeadConfig(scale=scale)
    return _stack(
        read,
        encoder=_stack(read, shared=True),
        num_layers=num_layers,
        head=head,
        tie_word_embeddings=tied,
    )


def _stack(
    read: Values,
    *,
    encoder: ModelConfig | None = None,
    num_layers: int | None = None,
    shared: bool = False,
    head: LMHeadConfig | None = None,
    tie_word_embeddings: bool = True,
) -> ModelConfig:
    """The encoder, or the decoder that looks across to `encoder`."""
    decodes = encoder is not None
    norm = RMSNormConfig(eps=read.number("layer_norm_epsilon", 1e-6))
    layer = LayerConfig(
        mixer=_attention(read, causal=decodes),
        cross_attention=_attention(read, causal=False) if decodes else None,
        feed_forward=_feed_forward(read),
        norm=norm,
    )
    return ModelConfig(
        vocab_size=read.count("vocab_size"),
        hidden_size=read.count("d_model"),
        layers=repeated(layer, num_layers or read.count("num_layers")),
        embedding=EmbeddingConfig(shared=shared),
        relative_positions=RelativePositions(
            num_buckets=read.count("relative_attention_num_buckets", 32),
            max_distance=read.count("relative_attention_max_distance", 128),
            bidirectional=not decodes,
        ),
        norm=norm,
        head=head,
        tie_word_embeddings=tie_word_embeddings,
        max_position_embeddings=read.count("n_positions", 512),
        encoder=encoder,
    )


def _attention(read: Values, *, causal: bool) -> AttentionConfig:
    heads = read.count("num_heads")
    return AttentionConfig(
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=read.count("d_kv"),
        rope=None,
        causal=causal,
        scale=1.0,
    )


def _feed_forward(read: Values) -> MLPConfig:
    gated, _, name = read.text("feed_forward_proj", "relu").rpartition("-")
    if gated == "gated" and name == "gelu":
        name = "gelu_new"  # what T5 1.1 means by it
    if gated not in ("", "gated") or name not in ACTIVATIONS:
        raise UserError(
            f"feed_forward_proj {read.raw('feed_forward_proj')!r} is not supported: known: "
            f"{', '.join(ACTIVATIONS)}, with gated- before them or not"
        )
    return MLPConfig(
        intermediate_size=read.count("d_ff"), activation=ACTIVATIONS[name], gated=bool(gated)
    )


def _rules() -> list[Rule]:
    decoder = _stack_rules("", "decoder.", feed_forward=2)
    across = [
        *_attention_rules("layers.{}.cross_attention", "decoder.block.{}.layer.1.EncDecAttention"),
        same("layers.{}.cross_attention_norm.weight", "decoder.block.{}.layer.1.layer_norm.weight"),
    ]
    return [
        same("embed_tokens.weight", "shared.weight"),
        same("lm_head.weight", "lm_head.weight"),
        *_stack_rules("encoder.", "encoder.", feed_forward=1),
        *only_when(lambda config: config.encoder is not None, [*decoder, *across]),
        *only_when(
            lambda config: config.encoder is None, _stack_rules("", "encoder.", feed_forward=1)
        ),
    ]


def _stack_rules(own: str, theirs: str, *, feed_forward: int) -> list[Rule]:
    layer, block = f"{own}layers.{{}}.", f"{theirs}block.{{}}."
    inner = f"{block}layer.{feed_forward}."
    first = f"{theirs}block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    plain = same(f"{layer}feed_forward.up_proj.weight", f"{inner}DenseReluDense.wi.weight")
    gated = [
        same(f"{layer}feed_forward.gate_proj.weight", f"{inner}DenseReluDense.wi_0.weight"),
        same(f"{layer}feed_forward.up_proj.weight", f"{inner}DenseReluDense.wi_1.weight"),
    ]
    return [
        same(f"{own}relative_bias.weight", first),
        same(f"{own}norm.weight", f"{theirs}final_layer_norm.weight"),
        *_attention_rules(f"{layer}mixer", f"{block}layer.0.SelfAttention"),
        same(f"{layer}mixer_norm.weight", f"{block}layer.0.layer_norm.weight"),
        same(f"{layer}feed_forward_norm.weight", f"{inner}layer_norm.weight"),
        same(f"{layer}feed_forward.down_proj.weight", f"{inner}DenseReluDense.wo.weight"),
        *only_when(lambda config: not _is_gated(config), [plain]),
        *only_when(_is_gated, gated),
    ]


def _attention_rules(own: str, theirs: str) -> list[Rule]:
    return [same(f"{own}.{name}_proj.weight", f"{theirs}.{name}.weight") for name in "qkvo"]


def _is_gated(config: ModelConfig) -> bool:
    feed_forward = config.layers[0].feed_forward
    return isinstance(feed_forward, MLPConfig) and feed_forward.gated


_LAYOUT = Layout(
    rules=_rules(),
    read_config=config_from_hf,
    # Copies of the shared table, and a bias that cross attention never had a use for.
    ignored=r"(en|de)coder\.embed_tokens\.weight"
    r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)
T5 = Architecture(name="t5", hf=_LAYOUT)
MT5 = Architecture(name="mt5", hf=_LAYOUT)
