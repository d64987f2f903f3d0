"""GPT-2: learned positions, LayerNorm, biases everywhere, matrices stored (in, out).

`GPT2LMHeadModel`. Source: Radford et al. 2019, Language models are unsupervised multitask learners.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.classes import decoder_head, decoder_head_to_hf
from lmworks.models.architectures.rules import Rule, for_kinds, fused, same, transposed
from lmworks.models.architectures.values import (
    HF_ACTIVATIONS,
    Values,
    activation,
    head_dim,
    shortest,
)
from lmworks.models.config import (
    AttentionConfig,
    LayerNormConfig,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
)


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    hidden, heads = read.count("n_embd"), read.count("n_head")
    read.only("scale_attn_weights", (True,))
    read.only("scale_attn_by_inverse_layer_idx", (False,))
    read.only("add_cross_attention", (False,))
    return ModelConfig.uniform(
        vocab_size=read.count("vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=read.count("n_layer"),
        mixer=AttentionConfig(
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=head_dim(hidden, heads),
            rope=None,
            bias="qkvo",
        ),
        feed_forward=MLPConfig(
            intermediate_size=read.count("n_inner", 4 * hidden),
            activation=activation(read, "activation_function", "gelu_new"),
            gated=False,
            bias=True,
        ),
        norm=LayerNormConfig(eps=read.number("layer_norm_epsilon", 1e-5)),
        positions=LearnedPositions(num_positions=read.count("n_positions")),
        **decoder_head(read, tied=True),
        max_position_embeddings=read.count("n_positions"),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `GPT2LMHeadModel`."""
    layer = config.layers[0]
    mixer: Any = layer.mixer
    feed_forward: Any = layer.feed_forward
    return {
        **decoder_head_to_hf(config, "GPT2LMHeadModel"),
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": mixer.num_attention_heads,
        "n_inner": feed_forward.intermediate_size,
        "n_positions": config.max_position_embeddings,
        "activation_function": HF_ACTIVATIONS[feed_forward.activation],
        "layer_norm_epsilon": layer.norm.eps,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
    }


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    """Read `gpt2.*` keys and the tensors' names and shapes. Raises: UserError as above."""
    values = Values(metadata, "gpt2.")
    for name in ("token_embd.weight", "position_embd.weight"):
        if name not in tensors:
            raise UserError(f"the tensor {name} is missing")
    hidden, heads = values.count("embedding_length"), values.count("attention.head_count")
    values.only("attention.head_count_kv", (heads,))
    return ModelConfig.uniform(
        vocab_size=int(tensors["token_embd.weight"].shape[0]),
        hidden_size=hidden,
        num_hidden_layers=values.count("block_count"),
        mixer=AttentionConfig(
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=head_dim(hidden, heads),
            rope=None,
            bias="qkvo",
        ),
        feed_forward=MLPConfig(
            intermediate_size=values.count("feed_forward_length"),
            activation="gelu_tanh",
            gated=False,
            bias=True,
        ),
        norm=LayerNormConfig(eps=shortest(values.number("attention.layer_norm_epsilon", 1e-5))),
        positions=LearnedPositions(num_positions=int(tensors["position_embd.weight"].shape[0])),
        tie_word_embeddings="output.weight" not in tensors,
        max_position_embeddings=values.count("context_length"),
    )


def config_to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The `gpt2.*` metadata that llama.cpp needs."""
    layer = config.layers[0]
    mixer: Any = layer.mixer
    feed_forward: Any = layer.feed_forward
    return {
        "general.architecture": "gpt2",
        "gpt2.vocab_size": config.vocab_size,
        "gpt2.context_length": config.max_position_embeddings,
        "gpt2.embedding_length": config.hidden_size,
        "gpt2.block_count": config.num_hidden_layers,
        "gpt2.feed_forward_length": feed_forward.intermediate_size,
        "gpt2.attention.head_count": mixer.num_attention_heads,
        "gpt2.attention.layer_norm_epsilon": float(layer.norm.eps),
    }


def _gguf_rules() -> list[Rule]:
    layer, theirs = "layers.{}.", "blk.{}."
    parts = [f"{layer}mixer.{name}_proj" for name in "qkv"]
    return [
        same("embed_tokens.weight", "token_embd.weight"),
        same("embed_positions.weight", "position_embd.weight"),
        *for_kinds(f"{layer}mixer_norm", f"{theirs}attn_norm"),
        *for_kinds(f"{layer}feed_forward_norm", f"{theirs}ffn_norm"),
        *(
            fused(
                [f"{part}.{kind}" for part in parts],
                f"{theirs}attn_qkv.{kind}",
                sizes=lambda config, _: [config.hidden_size] * 3,
            )
            for kind in ("weight", "bias")
        ),
        *for_kinds(f"{layer}mixer.o_proj", f"{theirs}attn_output"),
        *for_kinds(f"{layer}feed_forward.up_proj", f"{theirs}ffn_up"),
        *for_kinds(f"{layer}feed_forward.down_proj", f"{theirs}ffn_down"),
        *for_kinds("norm", "output_norm"),
        same("lm_head.weight", "output.weight"),
    ]


def _rules() -> list[Rule]:
    layer, theirs = "layers.{}.", "transformer.h.{}."
    parts = [f"{layer}mixer.{name}_proj" for name in "qkv"]
    return [
        same("embed_tokens.weight", "transformer.wte.weight"),
        same("embed_positions.weight", "transformer.wpe.weight"),
        *for_kinds(f"{layer}mixer_norm", f"{theirs}ln_1"),
        *for_kinds(f"{layer}feed_forward_norm", f"{theirs}ln_2"),
        *(
            fused(
                [f"{part}.{kind}" for part in parts],
                f"{theirs}attn.c_attn.{kind}",
                sizes=lambda config, _: [config.hidden_size] * 3,
                conv1d=kind == "weight",
            )
            for kind in ("weight", "bias")
        ),
        transposed(f"{layer}mixer.o_proj.weight", f"{theirs}attn.c_proj.weight"),
        same(f"{layer}mixer.o_proj.bias", f"{theirs}attn.c_proj.bias"),
        transposed(f"{layer}feed_forward.up_proj.weight", f"{theirs}mlp.c_fc.weight"),
        same(f"{layer}feed_forward.up_proj.bias", f"{theirs}mlp.c_fc.bias"),
        transposed(f"{layer}feed_forward.down_proj.weight", f"{theirs}mlp.c_proj.weight"),
        same(f"{layer}feed_forward.down_proj.bias", f"{theirs}mlp.c_proj.bias"),
        *for_kinds("norm", "transformer.ln_f"),
        same("lm_head.weight", "lm_head.weight"),
        *for_kinds("head.out_proj", "score"),
    ]


GPT2 = Architecture(
    name="gpt2",
    hf=Layout(
        rules=_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        ignored=r".*\.attn\.(masked_)?bias",
        prefix="transformer.",
    ),
    gguf=Layout(rules=_gguf_rules(), read_config=config_from_gguf, write_config=config_to_gguf),
)
