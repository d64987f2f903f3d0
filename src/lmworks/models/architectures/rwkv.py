"""RWKV-4: `RwkvForCausalLM`.

`rescale_every` is not read: in evaluation transformers halves states and weights every so many
layers against overflow in half precision, which changes no more than how much the norms' epsilon
weighs. A folder must hold the weights of training, as published ones do. The last norm's epsilon
is 1e-5 whatever the config says, as in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.rules import Rule, for_kinds, same
from lmworks.models.architectures.values import Values
from lmworks.models.config import (
    ChannelMixConfig,
    EmbeddingConfig,
    LayerConfig,
    LayerNormConfig,
    ModelConfig,
    TimeMixConfig,
)
from lmworks.models.config.model import repeated


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    hidden = read.count("hidden_size")
    return rwkv_config(
        vocab_size=read.count("vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=read.count("num_hidden_layers"),
        attention_size=read.count("attention_hidden_size", hidden),
        intermediate_size=read.count("intermediate_size", 4 * hidden),
        eps=read.number("layer_norm_epsilon", 1e-5),
        tie_word_embeddings=read.flag("tie_word_embeddings", False),
        max_position_embeddings=read.count("context_length", 1024),
    )


def rwkv_config(
    *,
    num_hidden_layers: int,
    attention_size: int,
    intermediate_size: int,
    eps: float = 1e-5,
    **rest: Any,
) -> ModelConfig:
    """An RWKV-4 whose layers know how deep they stand; `rest` goes to `ModelConfig`."""
    norm = LayerNormConfig(eps=eps)

    def layer(depth: float) -> LayerConfig:
        return LayerConfig(
            mixer=TimeMixConfig(attention_size=attention_size, depth=depth),
            feed_forward=ChannelMixConfig(intermediate_size=intermediate_size, depth=depth),
            norm=norm,
        )

    count = len(repeated(layer(0.0), num_hidden_layers))
    return ModelConfig(
        layers=tuple(layer(i / max(count - 1, 1)) for i in range(count)),
        embedding=EmbeddingConfig(norm=norm),
        norm=LayerNormConfig(eps=1e-5),
        **rest,
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `RwkvForCausalLM`."""
    layer = config.layers[0]
    mixer: Any = layer.mixer
    feed_forward: Any = layer.feed_forward
    return {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "attention_hidden_size": mixer.attention_size,
        "intermediate_size": feed_forward.intermediate_size,
        "layer_norm_epsilon": layer.norm.eps,
        "context_length": config.max_position_embeddings,
        "rescale_every": 0,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
    }


def _rules() -> list[Rule]:
    layer, theirs = "layers.{}.", "rwkv.blocks.{}."
    mixes = ["time_mix_key", "time_mix_receptance"]
    projections = ["key.weight", "value.weight", "receptance.weight"]
    mixer = ["time_decay", "time_first", *mixes, "time_mix_value", *projections, "output.weight"]
    return [
        same("embed_tokens.weight", "rwkv.embeddings.weight"),
        *for_kinds("embed_norm", "rwkv.blocks.0.pre_ln"),
        *for_kinds(f"{layer}mixer_norm", f"{theirs}ln1"),
        *for_kinds(f"{layer}feed_forward_norm", f"{theirs}ln2"),
        *(same(f"{layer}mixer.{name}", f"{theirs}attention.{name}") for name in mixer),
        *(
            same(f"{layer}feed_forward.{name}", f"{theirs}feed_forward.{name}")
            for name in (*mixes, *projections)
        ),
        *for_kinds("norm", "rwkv.ln_out"),
        same("lm_head.weight", "head.weight"),
    ]


RWKV = Architecture(
    name="rwkv",
    hf=Layout(
        rules=_rules(), read_config=config_from_hf, write_config=config_to_hf, prefix="rwkv."
    ),
)
