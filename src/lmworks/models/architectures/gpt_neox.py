"""GPT-NeoX and Pythia: attention and feed-forward side by side, a part of each head turned.

`GPTNeoXForCausalLM`; its one matrix for queries, keys and values takes turns head by head.
Source: Black et al. 2022, arXiv 2204.06745.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.rope import rope_from_hf, rope_to_hf
from lmworks.models.architectures.rules import Rule, for_kinds, fused_per_head, same
from lmworks.models.architectures.values import HF_ACTIVATIONS, Values, activation, head_dim
from lmworks.models.config import AttentionConfig, LayerNormConfig, MLPConfig, ModelConfig


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
    theta, part = read.number("rotary_emb_base", 10000.0), read.number("rotary_pct", 0.25)
    return ModelConfig.uniform(
        vocab_size=read.count("vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=read.count("num_hidden_layers"),
        mixer=AttentionConfig(
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=head_dim(hidden, heads),
            rope=rope_from_hf(read, theta=theta, fraction=part),
            bias="qkvo" if read.flag("attention_bias", True) else "",
        ),
        feed_forward=MLPConfig(
            intermediate_size=read.count("intermediate_size"),
            activation=activation(read, "hidden_act", "gelu"),
            gated=False,
            bias=True,
        ),
        norm=LayerNormConfig(eps=read.number("layer_norm_eps", 1e-5)),
        placement="parallel" if read.flag("use_parallel_residual", True) else "pre",
        tie_word_embeddings=read.flag("tie_word_embeddings", False),
        max_position_embeddings=read.count("max_position_embeddings", 2048),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `GPTNeoXForCausalLM`."""
    layer = config.layers[0]
    mixer: Any = layer.mixer
    feed_forward: Any = layer.feed_forward
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": feed_forward.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": mixer.num_attention_heads,
        "hidden_act": HF_ACTIVATIONS[feed_forward.activation],
        "attention_bias": bool(mixer.bias),
        "layer_norm_eps": layer.norm.eps,
        "rotary_emb_base": mixer.rope.theta,
        "rotary_pct": mixer.rope.fraction,
        "rope_scaling": rope_to_hf(mixer.rope)["rope_scaling"],
        "use_parallel_residual": layer.placement == "parallel",
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
    }


def _heads(config: ModelConfig) -> int:
    mixer: Any = config.layers[0].mixer
    return int(mixer.num_attention_heads)


def layer_rules(theirs: str, attention: str) -> list[Rule]:
    """The names within a layer of GPT-NeoX and BLOOM, which call their layers and attention so."""
    layer = "layers.{}."
    parts = [f"{layer}mixer.{name}_proj" for name in "qkv"]
    return [
        *for_kinds(f"{layer}mixer_norm", f"{theirs}input_layernorm"),
        *for_kinds(f"{layer}feed_forward_norm", f"{theirs}post_attention_layernorm"),
        *(
            fused_per_head(
                [f"{part}.{kind}" for part in parts],
                f"{theirs}{attention}.query_key_value.{kind}",
                heads=_heads,
            )
            for kind in ("weight", "bias")
        ),
        *for_kinds(f"{layer}mixer.o_proj", f"{theirs}{attention}.dense"),
        *for_kinds(f"{layer}feed_forward.up_proj", f"{theirs}mlp.dense_h_to_4h"),
        *for_kinds(f"{layer}feed_forward.down_proj", f"{theirs}mlp.dense_4h_to_h"),
    ]


GPT_NEOX = Architecture(
    name="gpt_neox",
    hf=Layout(
        rules=[
            same("embed_tokens.weight", "gpt_neox.embed_in.weight"),
            *layer_rules("gpt_neox.layers.{}.", "attention"),
            *for_kinds("norm", "gpt_neox.final_layer_norm"),
            same("lm_head.weight", "embed_out.weight"),
        ],
        read_config=config_from_hf,
        write_config=config_to_hf,
        ignored=r".*\.(attention\.(bias|masked_bias)|rotary_emb\.inv_freq)",
        prefix="gpt_neox.",
    ),
)
