"""What Llama and its many likes share: names, and the common part of their configs.

An architecture of that family is told by what differs: a bias here, a norm there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.classes import decoder_head, decoder_head_to_hf
from lmworks.models.architectures.rope import rope_from_gguf, rope_from_hf, rope_to_gguf, rope_to_hf
from lmworks.models.architectures.rules import Rule, for_kinds, same
from lmworks.models.architectures.values import (
    HF_ACTIVATIONS,
    Values,
    activation,
    head_dim,
    shortest,
)
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, RMSNormConfig, RoPEConfig

MIXER = {
    "q_proj": ("q_proj", "attn_q"),
    "k_proj": ("k_proj", "attn_k"),
    "v_proj": ("v_proj", "attn_v"),
    "o_proj": ("o_proj", "attn_output"),
    "q_norm": ("q_norm", "attn_q_norm"),
    "k_norm": ("k_norm", "attn_k_norm"),
}
FEED_FORWARD = {
    "gate_proj": ("gate_proj", "ffn_gate"),
    "up_proj": ("up_proj", "ffn_up"),
    "down_proj": ("down_proj", "ffn_down"),
}
# Our norm -> theirs, for layers with two of them before, two behind, and four around the parts.
PRE_NORMS = {
    "mixer_norm": ("input_layernorm", "attn_norm"),
    "feed_forward_norm": ("post_attention_layernorm", "ffn_norm"),
}
OUTPUT_NORMS = {
    "mixer_norm": ("post_attention_layernorm", "post_attention_norm"),
    "feed_forward_norm": ("post_feedforward_layernorm", "post_ffw_norm"),
}
SANDWICH_NORMS = {
    "mixer_norm": ("input_layernorm", "attn_norm"),
    "mixer_output_norm": ("post_attention_layernorm", "post_attention_norm"),
    "feed_forward_norm": ("pre_feedforward_layernorm", "ffn_norm"),
    "feed_forward_output_norm": ("post_feedforward_layernorm", "post_ffw_norm"),
}


def hf_rules(
    norms: Mapping[str, tuple[str, str]] = PRE_NORMS, prefix: str = "model."
) -> list[Rule]:
    """The names in a Hugging Face folder."""
    layer, hf = "layers.{}.", prefix + "layers.{}."
    rules = [
        same("embed_tokens.weight", f"{prefix}embed_tokens.weight"),
        *for_kinds("norm", f"{prefix}norm"),
        *for_kinds("lm_head", "lm_head"),
        *for_kinds("head.out_proj", "score"),
    ]
    for own, (theirs, _) in MIXER.items():
        rules += for_kinds(f"{layer}mixer.{own}", f"{hf}self_attn.{theirs}")
    for own, (theirs, _) in FEED_FORWARD.items():
        rules += for_kinds(f"{layer}feed_forward.{own}", f"{hf}mlp.{theirs}")
    for own, (theirs, _) in norms.items():
        rules += for_kinds(f"{layer}{own}", f"{hf}{theirs}")
    return rules


def gguf_rules(norms: Mapping[str, tuple[str, str]] = PRE_NORMS) -> list[Rule]:
    """The names in a GGUF file."""
    layer, gguf = "layers.{}.", "blk.{}."
    rules = [
        same("embed_tokens.weight", "token_embd.weight"),
        *for_kinds("norm", "output_norm"),
        *for_kinds("lm_head", "output"),
    ]
    for own, (_, theirs) in MIXER.items():
        rules += for_kinds(f"{layer}mixer.{own}", gguf + theirs)
    for own, (_, theirs) in FEED_FORWARD.items():
        rules += for_kinds(f"{layer}feed_forward.{own}", gguf + theirs)
    for own, (_, theirs) in norms.items():
        rules += for_kinds(layer + own, gguf + theirs)
    return rules


def attention_from_hf(values: Values, **changes: Any) -> AttentionConfig:
    """The attention of a Llama-like config; `changes` are what the architecture does otherwise."""
    heads, hidden = values.count("num_attention_heads"), values.count("hidden_size")
    given = values.count("head_dim", None)
    defaults: dict[str, Any] = {
        "num_attention_heads": heads,
        "num_key_value_heads": values.count("num_key_value_heads", heads),
        "head_dim": head_dim(hidden, heads) if given is None else given,
    }
    if "rope" not in changes:
        defaults["rope"] = rope_from_hf(values)
    return AttentionConfig(**defaults | changes)


def mlp_from_hf(values: Values, **changes: Any) -> MLPConfig:
    """The gated feed-forward of a Llama-like config."""
    defaults: dict[str, Any] = {
        "intermediate_size": values.count("intermediate_size"),
        "activation": activation(values, "hidden_act", "silu"),
    }
    return MLPConfig(**defaults | changes)


def model_from_hf(
    values: Values, *, norm: RMSNormConfig | None = None, tied: bool = False, **parts: Any
) -> ModelConfig:
    """A decoder whose layers are alike; `parts` are those of `ModelConfig.uniform`.

    `tied` is the architecture's default of `tie_word_embeddings`.
    """
    return ModelConfig.uniform(
        **decoder_head(values, parts.pop("head", None), tied=tied),
        vocab_size=values.count("vocab_size"),
        hidden_size=values.count("hidden_size"),
        num_hidden_layers=values.count("num_hidden_layers"),
        norm=norm or RMSNormConfig(eps=values.number("rms_norm_eps", 1e-6)),
        max_position_embeddings=values.count("max_position_embeddings", 2048),
        **parts,
    )


def common_to_hf(config: ModelConfig, hf_class: str, model_type: str) -> dict[str, Any]:
    """The keys that all Llama-likes write, for a model whose layers are alike.

    Raises: AttributeError or TypeError for a model of other blocks; who calls it treats that as
        "not this architecture" (`Architecture.expresses`).
    """
    layer = config.layers[0]
    mixer: Any = layer.mixer
    feed_forward: Any = layer.feed_forward
    return {
        **decoder_head_to_hf(config, hf_class),
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": feed_forward.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": mixer.num_attention_heads,
        "num_key_value_heads": mixer.num_key_value_heads,
        "head_dim": mixer.head_dim,
        "hidden_act": HF_ACTIVATIONS[feed_forward.activation],
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": layer.norm.eps,
        **rope_to_hf(mixer.rope),
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
    }


def attention_from_gguf(
    values: Values, tensors: Mapping[str, Any], *, partly: bool = False, **changes: Any
) -> AttentionConfig:
    """The attention that a GGUF file's metadata and tensors tell of.

    `partly`: heads may be turned in part.
    """
    hidden, heads = values.count("embedding_length"), values.count("attention.head_count")
    size = values.count("attention.key_length", 0) or head_dim(hidden, heads)
    values.only("attention.value_length", (size,))
    turned = values.count("rope.dimension_count", size)
    if not partly:
        values.only("rope.dimension_count", (size,))
    letters = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
    defaults: dict[str, Any] = {
        "num_attention_heads": heads,
        "num_key_value_heads": values.count("attention.head_count_kv", heads),
        "head_dim": size,
        "rope": rope_from_gguf(values, tensors, size, turned),
        "bias": "".join(k for k, name in letters.items() if f"blk.0.{name}.bias" in tensors),
    }
    return AttentionConfig(**defaults | changes)


def model_from_gguf(
    values: Values, tensors: Mapping[str, Any], *, norm: RMSNormConfig | None = None, **parts: Any
) -> ModelConfig:
    """A decoder whose layers are alike. Raises: UserError for what is missing."""
    if "token_embd.weight" not in tensors:
        raise UserError("the tensor token_embd.weight is missing")
    return ModelConfig.uniform(
        vocab_size=int(tensors["token_embd.weight"].shape[0]),
        hidden_size=values.count("embedding_length"),
        num_hidden_layers=values.count("block_count"),
        norm=norm or RMSNormConfig(eps=eps_from_gguf(values)),
        tie_word_embeddings="output.weight" not in tensors,
        max_position_embeddings=values.count("context_length", 2048),
        **parts,
    )


def eps_from_gguf(values: Values) -> float:
    """The eps of the norms, as the decimal that the float32 came from."""
    return shortest(values.number("attention.layer_norm_rms_epsilon", 1e-6))


def common_to_gguf(config: ModelConfig, name: str) -> dict[str, Any]:
    """The metadata that llama.cpp needs of all Llama-likes."""
    layer = config.layers[0]
    mixer: Any = layer.mixer
    feed_forward: Any = layer.feed_forward
    rope: RoPEConfig = mixer.rope
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": feed_forward.intermediate_size,
        "attention.head_count": mixer.num_attention_heads,
        "attention.head_count_kv": mixer.num_key_value_heads,
        "attention.key_length": mixer.head_dim,
        "attention.value_length": mixer.head_dim,
        "attention.layer_norm_rms_epsilon": float(layer.norm.eps),
        **rope_to_gguf(rope, mixer.head_dim),
    }
    return {"general.architecture": name, **{f"{name}.{k}": v for k, v in values.items()}}
