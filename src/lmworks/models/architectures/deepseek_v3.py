"""DeepSeek-V3 with dense layers: attention over compressed keys and values.

`DeepseekV3ForCausalLM`. Its files interleave the turned dimensions, which are put in our order when
they are read. Layers of experts are not read: `first_k_dense_replace` must cover all layers.
Source: arXiv 2412.19437.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.llama_layout import hf_rules, mlp_from_hf, model_from_hf
from lmworks.models.architectures.rope import rope_from_hf, rope_to_hf
from lmworks.models.architectures.rules import Rule, for_kinds, reordered
from lmworks.models.architectures.values import HF_ACTIVATIONS, Values
from lmworks.models.config import LatentAttentionConfig, ModelConfig, RoPEConfig, YaRNScaling

if TYPE_CHECKING:
    import torch


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    layers = read.count("num_hidden_layers")
    if read.count("first_k_dense_replace", 3) < layers:
        raise UserError(
            f"first_k_dense_replace leaves layers of experts among the {layers}, which are not "
            "supported for deepseek_v3"
        )
    read.only("rope_interleave", (True,))
    rope = rope_from_hf(read)
    mixer = LatentAttentionConfig(
        num_attention_heads=read.count("num_attention_heads"),
        # null is none; left out, the released model's is meant.
        q_lora_rank=read.count("q_lora_rank", None if "q_lora_rank" in values else 1536),
        kv_lora_rank=read.count("kv_lora_rank", 512),
        qk_nope_head_dim=read.count("qk_nope_head_dim", 128),
        qk_rope_head_dim=read.count("qk_rope_head_dim", 64),
        v_head_dim=read.count("v_head_dim", 128),
        rope=rope,
        bias=read.flag("attention_bias", False),
    )
    return model_from_hf(read, mixer=_scaled(mixer, rope), feed_forward=mlp_from_hf(read))


def _scaled(mixer: LatentAttentionConfig, rope: RoPEConfig) -> LatentAttentionConfig:
    """YaRN with `mscale_all_dim` sharpens the scores as well."""
    scaling = rope.scaling
    if not isinstance(scaling, YaRNScaling) or not scaling.mscale_all_dim or scaling.factor <= 1:
        return mixer
    mscale = 0.1 * scaling.mscale_all_dim * math.log(scaling.factor) + 1
    return dataclasses.replace(mixer, scale=mixer.qk_head_dim**-0.5 * mscale * mscale)


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `DeepseekV3ForCausalLM`."""
    layer = config.layers[0]
    mixer: Any = layer.mixer
    feed_forward: Any = layer.feed_forward
    sizes = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": feed_forward.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "first_k_dense_replace": config.num_hidden_layers,
        "num_attention_heads": mixer.num_attention_heads,
        "num_key_value_heads": mixer.num_attention_heads,
        **{name: getattr(mixer, name) for name in sizes},
        "hidden_act": HF_ACTIVATIONS[feed_forward.activation],
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": layer.norm.eps,
        **rope_to_hf(mixer.rope),
        "rope_interleave": True,
        "attention_bias": mixer.bias,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
    }


def _pairs_apart(size: int) -> torch.Tensor:
    """The order of `size` rows that puts the first of all pairs before the second of all."""
    import torch

    return torch.arange(size, device="cpu").view(-1, 2).T.reshape(-1)


def _query_rows(config: ModelConfig, numbers: tuple[int, ...]) -> torch.Tensor:
    """Each head's turned rows, which follow those without positions."""
    import torch

    mixer: Any = config.layers[numbers[0]].mixer
    nope, size = mixer.qk_nope_head_dim, mixer.qk_head_dim
    head = torch.arange(size, device="cpu")
    head[nope:] = nope + _pairs_apart(mixer.qk_rope_head_dim)
    heads = torch.arange(mixer.num_attention_heads, device="cpu")[:, None] * size
    return (heads + head).reshape(-1)


def _latent_rows(config: ModelConfig, numbers: tuple[int, ...]) -> torch.Tensor:
    """The rows of the shared turned key, which follow those of the latent."""
    import torch

    mixer: Any = config.layers[numbers[0]].mixer
    rows = torch.arange(mixer.kv_lora_rank + mixer.qk_rope_head_dim, device="cpu")
    rows[mixer.kv_lora_rank :] = mixer.kv_lora_rank + _pairs_apart(mixer.qk_rope_head_dim)
    return rows


def _rules() -> list[Rule]:
    layer, theirs = "layers.{}.mixer.", "model.layers.{}.self_attn."
    rules = [rule for rule in hf_rules() if not rule.own[0].startswith(layer)]
    return [
        *rules,
        reordered(f"{layer}q_proj.weight", f"{theirs}q_proj.weight", _query_rows),
        *for_kinds(f"{layer}q_a_proj", f"{theirs}q_a_proj"),
        *for_kinds(f"{layer}q_a_norm", f"{theirs}q_a_layernorm"),
        reordered(f"{layer}q_b_proj.weight", f"{theirs}q_b_proj.weight", _query_rows),
        *(
            reordered(
                f"{layer}kv_a_proj.{kind}", f"{theirs}kv_a_proj_with_mqa.{kind}", _latent_rows
            )
            for kind in ("weight", "bias")
        ),
        *for_kinds(f"{layer}kv_a_norm", f"{theirs}kv_a_layernorm"),
        *for_kinds(f"{layer}kv_b_proj", f"{theirs}kv_b_proj"),
        *for_kinds(f"{layer}o_proj", f"{theirs}o_proj"),
    ]


DEEPSEEK_V3 = Architecture(
    name="deepseek_v3",
    hf=Layout(
        rules=_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
    ),
)
