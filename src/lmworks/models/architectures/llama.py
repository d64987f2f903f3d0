"""Llama and its likes (SmolLM2, TinyLlama, Llama 3.x): `LlamaForCausalLM` and GGUF `llama`.

Both spellings of rotary scaling are read: `rope_theta` + `rope_scaling`, and `rope_parameters`
as transformers 5 writes it. The first is written, since every version reads it. Kinds other than
linear and llama3, mixtures of experts and activations other than SiLU are refused.

GGUF files of this architecture hold the rows of q and k with the two halves of each head
interleaved (llama.cpp's converter does that for its own rotary kernel); `_row_order` undoes it.
They hold llama3 scaling as the tensor `rope_freqs.weight`, the divisor of each frequency, from
which its parameters are recovered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Architecture, Names
from lmworks.models.config import (
    AttentionConfig,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    RoPEConfig,
    SwiGLUConfig,
)

if TYPE_CHECKING:
    import numpy as np

_ROPE_FREQS = "rope_freqs.weight"


def _layer_names() -> dict[str, Names]:
    parts = {
        "mixer.q_proj": ("self_attn.q_proj", "attn_q"),
        "mixer.k_proj": ("self_attn.k_proj", "attn_k"),
        "mixer.v_proj": ("self_attn.v_proj", "attn_v"),
        "mixer.o_proj": ("self_attn.o_proj", "attn_output"),
        "feed_forward.gate_proj": ("mlp.gate_proj", "ffn_gate"),
        "feed_forward.up_proj": ("mlp.up_proj", "ffn_up"),
        "feed_forward.down_proj": ("mlp.down_proj", "ffn_down"),
    }
    norms = {
        "mixer_norm": ("input_layernorm", "attn_norm"),
        "feed_forward_norm": ("post_attention_layernorm", "ffn_norm"),
    }
    return {
        f"layers.{{}}.{own}.{kind}": Names(
            hf=f"model.layers.{{}}.{hf}.{kind}", gguf=f"blk.{{}}.{gguf}.{kind}"
        )
        for table, kinds in ((parts, ("weight", "bias")), (norms, ("weight",)))
        for own, (hf, gguf) in table.items()
        for kind in kinds
    }


NAMES = {
    "embed_tokens.weight": Names(hf="model.embed_tokens.weight", gguf="token_embd.weight"),
    **_layer_names(),
    "norm.weight": Names(hf="model.norm.weight", gguf="output_norm.weight"),
    "lm_head.weight": Names(hf="lm_head.weight", gguf="output.weight"),
}


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    _refuse_hf(values)
    heads, hidden = _need(values, "num_attention_heads"), _need(values, "hidden_size")
    kv_heads = values.get("num_key_value_heads")
    head_dim = values.get("head_dim")
    if head_dim is None:
        head_dim = _head_dim(hidden, heads)
    return ModelConfig(
        vocab_size=_need(values, "vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=_need(values, "num_hidden_layers"),
        mixer=AttentionConfig(
            num_attention_heads=heads,
            num_key_value_heads=heads if kv_heads is None else kv_heads,
            head_dim=head_dim,
            rope=_rope_from_hf(values),
            bias=bool(values.get("attention_bias", False)),
        ),
        feed_forward=SwiGLUConfig(
            intermediate_size=_need(values, "intermediate_size"),
            bias=bool(values.get("mlp_bias", False)),
        ),
        rms_norm_eps=values.get("rms_norm_eps", 1e-6),
        tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
        max_position_embeddings=values.get("max_position_embeddings", 2048),
    )


def _refuse_hf(values: Mapping[str, Any]) -> None:
    activation = values.get("hidden_act", "silu")
    if activation != "silu":
        raise UserError(f"hidden_act {activation!r} is not supported for llama, only 'silu'")
    rope = values.get("rope_parameters") or {}
    part = values.get("partial_rotary_factor") or _get(rope, "partial_rotary_factor")
    if part not in (None, 1, 1.0):
        raise UserError(f"partial_rotary_factor {part} is not supported for llama, only 1")


def _rope_from_hf(values: Mapping[str, Any]) -> RoPEConfig:
    new, old = values.get("rope_parameters"), values.get("rope_scaling")
    rope = new if new is not None else (old if old is not None else {})
    if not isinstance(rope, Mapping):
        raise UserError(f"the rope settings must be an object, not {rope!r}")
    theta = rope.get("rope_theta", values.get("rope_theta"))
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaling: LinearScaling | Llama3Scaling | None
    if kind in ("default", None):
        scaling = None
    elif kind == "linear":
        scaling = LinearScaling(factor=_need(rope, "factor"))
    elif kind == "llama3":
        original = rope.get("original_max_position_embeddings")
        scaling = Llama3Scaling(
            factor=_need(rope, "factor"),
            low_freq_factor=_need(rope, "low_freq_factor"),
            high_freq_factor=_need(rope, "high_freq_factor"),
            original_max_position_embeddings=_need(values, "max_position_embeddings")
            if original is None
            else original,
        )
    else:
        raise UserError(f"rope_type {kind!r} is not supported: known: default, linear, llama3")
    return RoPEConfig(theta=10000.0 if theta is None else theta, scaling=scaling)


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `LlamaForCausalLM`."""
    mixer, feed_forward = config.mixer, config.feed_forward
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": feed_forward.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": mixer.num_attention_heads,
        "num_key_value_heads": mixer.num_key_value_heads,
        "head_dim": mixer.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": mixer.rope.theta,
        "rope_scaling": _scaling_to_hf(mixer.rope.scaling),
        "attention_bias": mixer.bias,
        "attention_dropout": 0.0,
        "mlp_bias": feed_forward.bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
    }


def _scaling_to_hf(scaling: LinearScaling | Llama3Scaling | None) -> dict[str, Any] | None:
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }
    return None


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    """Read `llama.*` keys and the tensors' names and shapes. Raises: UserError as above."""
    values = {k.removeprefix("llama."): v for k, v in metadata.items() if k.startswith("llama.")}
    if _number(values, "expert_count", 0):
        raise UserError("mixture-of-experts models are not supported for llama")
    if "token_embd.weight" not in tensors:
        raise UserError("the tensor token_embd.weight is missing")
    hidden, heads = _number(values, "embedding_length"), _number(values, "attention.head_count")
    head_dim = _number(values, "attention.key_length", 0) or _head_dim(hidden, heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if _number(values, key, head_dim) != head_dim:
            raise UserError(f"llama.{key} {values[key]} differs from the head size {head_dim}")
    theta = _real(values, "rope.freq_base", 10000.0)
    return ModelConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[0]),
        hidden_size=hidden,
        num_hidden_layers=_number(values, "block_count"),
        mixer=AttentionConfig(
            num_attention_heads=heads,
            num_key_value_heads=_number(values, "attention.head_count_kv", heads),
            head_dim=head_dim,
            rope=RoPEConfig(
                theta=theta, scaling=_scaling_from_gguf(values, tensors, theta, head_dim)
            ),
            bias="blk.0.attn_q.bias" in tensors,
        ),
        feed_forward=SwiGLUConfig(
            intermediate_size=_number(values, "feed_forward_length"),
            bias="blk.0.ffn_gate.bias" in tensors,
        ),
        rms_norm_eps=_shortest(_real(values, "attention.layer_norm_rms_epsilon", 1e-6)),
        tie_word_embeddings="output.weight" not in tensors,
        max_position_embeddings=_number(values, "context_length", 2048),
    )


def _scaling_from_gguf(
    values: Mapping[str, Any], tensors: Mapping[str, Any], theta: float, head_dim: int
) -> LinearScaling | Llama3Scaling | None:
    if _ROPE_FREQS in tensors:
        return _recover_llama3(tensors[_ROPE_FREQS], theta, head_dim)
    kind = values.get("rope.scaling.type", "linear" if "rope.scale_linear" in values else "none")
    factor = _real(values, "rope.scaling.factor", _real(values, "rope.scale_linear", 1.0))
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return LinearScaling(factor=factor)
    raise UserError(f"rope scaling {kind!r} is not supported: known: none, linear, llama3")


def _recover_llama3(tensor: Any, theta: float, head_dim: int) -> Llama3Scaling | None:
    """The scaling whose divisors are those of `rope_freqs.weight`.

    All published checkpoints share the constants 1, 4 and 8192 and differ in the factor, which is
    the largest divisor; the result is checked against every divisor.
    """
    import numpy as np

    from lmworks.core.gguf import dequantize

    divisors = dequantize(tensor).reshape(-1)
    if np.array_equal(divisors, np.ones_like(divisors)):
        return None
    largest = float(divisors.max())
    if len(divisors) == head_dim // 2 and np.isfinite(divisors).all() and largest > 0:
        scaling = Llama3Scaling(factor=_shortest(largest))
        if np.allclose(_llama3_divisors(scaling, theta, head_dim), divisors, rtol=1e-3):
            return scaling
    raise UserError(f"{_ROPE_FREQS} holds divisors that are not those of llama3 scaling")


def _llama3_divisors(scaling: Llama3Scaling, theta: float, head_dim: int) -> np.ndarray:
    from lmworks.models.positions import inverse_frequencies, llama3_factors

    divisors = llama3_factors(scaling, inverse_frequencies(RoPEConfig(theta=theta), head_dim))
    array: np.ndarray = divisors.numpy()
    return array


def config_to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The `llama.*` metadata that llama.cpp needs."""
    mixer, scaling = config.mixer, config.mixer.rope.scaling
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.feed_forward.intermediate_size,
        "attention.head_count": mixer.num_attention_heads,
        "attention.head_count_kv": mixer.num_key_value_heads,
        "attention.key_length": mixer.head_dim,
        "attention.value_length": mixer.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": mixer.head_dim,
        "rope.freq_base": float(mixer.rope.theta),
    }
    if isinstance(scaling, LinearScaling):
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    return {"general.architecture": "llama", **{f"llama.{k}": v for k, v in values.items()}}


def _extras(config: ModelConfig) -> dict[str, np.ndarray]:
    rope = config.mixer.rope
    if not isinstance(rope.scaling, Llama3Scaling):
        return {}
    return {_ROPE_FREQS: _llama3_divisors(rope.scaling, rope.theta, config.mixer.head_dim)}


def _row_order(name: str, config: ModelConfig) -> np.ndarray | None:
    """Rows of the GGUF tensor in our order; None where the two agree."""
    import numpy as np

    mixer = config.mixer
    if ".mixer.q_proj." in name:
        heads = mixer.num_attention_heads
    elif ".mixer.k_proj." in name:
        heads = mixer.num_key_value_heads
    else:
        return None
    rows = np.arange(heads * mixer.head_dim).reshape(heads, mixer.head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)


def _expresses(config: ModelConfig) -> bool:
    return isinstance(config.mixer, AttentionConfig) and isinstance(
        config.feed_forward, SwiGLUConfig
    )


def _get(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, Mapping) else None


def _need(values: Mapping[str, Any], key: str) -> Any:
    if values.get(key) is None:
        raise UserError(f"{key!r} is missing")
    return values[key]


def _number(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key, default)
    if value is None:
        raise UserError(f"llama.{key} is missing")
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"llama.{key} must be one whole number, not {value!r}")
    return value


def _real(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"llama.{key} must be a number, not {value!r}")
    return float(value)


def _head_dim(hidden_size: Any, num_attention_heads: Any) -> int:
    for value in (hidden_size, num_attention_heads):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"hidden_size and num_attention_heads must be counts, not {value!r}")
    if hidden_size % num_attention_heads:
        raise UserError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads "
            f"{num_attention_heads}, and head_dim is not given"
        )
    return int(hidden_size) // int(num_attention_heads)


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 for 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


LLAMA = Architecture(
    name="llama",
    hf_class="LlamaForCausalLM",
    names=NAMES,
    ignored_hf=r".*\.rotary_emb\.inv_freq",
    ignored_gguf=re.escape(_ROPE_FREQS),
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    config_from_gguf=config_from_gguf,
    config_to_gguf=config_to_gguf,
    gguf_row_order=_row_order,
    gguf_extras=_extras,
    expresses=_expresses,
)
