"""Decoders of other projects, every option once: the same answers as transformers, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.parity import assert_parity, assert_written, randomised

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 3.0, 6.0, 9.0],
    "rope_theta": 500.0,
}
NEOX = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
BLOOM: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "n_layer": 2,
    "n_head": 6,  # no power of two: slopes of two rows
    "bos_token_id": None,
    "eos_token_id": None,
}
LATENT = SIZES | {
    "num_key_value_heads": 6,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 12,
    "first_k_dense_replace": 2,
}
GEMMA = SIZES | {"head_dim": 12, "num_key_value_heads": 3}
QWEN_WINDOWS = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}

# name: (configuration class, its settings, model_type that we write)
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "mistral": ("MistralConfig", SIZES | {"sliding_window": 9}, "mistral"),
    "mistral without a window": (
        "MistralConfig",
        SIZES | {"sliding_window": None, "head_dim": 12, "tie_word_embeddings": True},
        "mistral",
    ),
    "qwen2 with windows": ("Qwen2Config", SIZES | QWEN_WINDOWS, "qwen2"),
    "qwen2 with layer types": (
        "Qwen2Config",
        SIZES | QWEN_WINDOWS | {"layer_types": ["sliding_attention", "full_attention"]},
        "qwen2",
    ),
    "qwen3": ("Qwen3Config", SIZES | {"head_dim": 12, "attention_bias": True}, "qwen3"),
    "qwen3 with windows": (
        "Qwen3Config",
        SIZES | QWEN_WINDOWS | {"head_dim": 8, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
        "qwen3",
    ),
    "gemma": ("GemmaConfig", GEMMA | {"rms_norm_eps": 1e-3}, "gemma"),
    "gemma untied": (
        "GemmaConfig",
        GEMMA | {"tie_word_embeddings": False, "attention_bias": True, "hidden_act": "gelu"},
        "gemma",
    ),
    "gemma2": (
        "Gemma2Config",
        GEMMA
        | {
            "num_hidden_layers": 3,
            "sliding_window": 9,
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        "gemma2",
    ),
    "gemma2 without caps": (
        "Gemma2Config",
        GEMMA
        | {
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 7,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
        "gemma2",
    ),
    "gemma3": (
        "Gemma3TextConfig",
        GEMMA | {"num_hidden_layers": 7, "sliding_window": 9, "query_pre_attn_scalar": 10},
        "gemma3_text",
    ),
    "gemma3 scaled": (
        "Gemma3TextConfig",
        GEMMA
        | {
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 9,
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        "gemma3_text",
    ),
    "phi3": ("Phi3Config", SIZES, "phi3"),
    "phi3 with a window, partly turned": (
        "Phi3Config",
        SIZES
        | {
            "sliding_window": 9,
            "hidden_act": "gelu",
            "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 500.0},
        },
        "phi3",
    ),
    # The prompt is longer than what is called the original length: the long factors from the start.
    "phi3 with longrope": (
        "Phi3Config",
        SIZES | {"rope_parameters": LONG, "original_max_position_embeddings": 32},
        "phi3",
    ),
    "phi3 within the original length": (
        "Phi3Config",
        SIZES | {"rope_parameters": LONG, "original_max_position_embeddings": 110},
        "phi3",
    ),
    "llama with yarn": (
        "LlamaConfig",
        SIZES | {"rope_parameters": YARN | {"rope_theta": 500.0, "beta_fast": 8}},
        "llama",
    ),
    "gpt_neox with yarn": ("GPTNeoXConfig", NEOX | {"rope_parameters": YARN}, "gpt_neox"),
    "qwen2 within a dynamic length": (
        "Qwen2Config",
        SIZES | {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
        "qwen2",
    ),
    "olmo2": ("Olmo2Config", SIZES | {"attention_bias": True, "rms_norm_eps": 1e-3}, "olmo2"),
    "olmo3": (
        "Olmo3Config",
        SIZES
        | {
            "num_hidden_layers": 4,
            "sliding_window": 9,
            "rope_parameters": {
                "full_attention": YARN | {"rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 900.0},
            },
        },
        "olmo3",
    ),
    "smollm3": (
        "SmolLM3Config",
        SIZES | {"num_hidden_layers": 4, "attention_bias": True, "mlp_bias": True},
        "smollm3",
    ),
    "smollm3 with windows": (
        "SmolLM3Config",
        SIZES
        | {
            "no_rope_layers": [0, 1],
            "use_sliding_window": True,
            "sliding_window": 9,
            "tie_word_embeddings": False,
        },
        "smollm3",
    ),
    "deepseek_v3": ("DeepseekV3Config", LATENT, "deepseek_v3"),
    "deepseek_v3 with yarn": (
        "DeepseekV3Config",
        LATENT
        | {
            "q_lora_rank": None,
            "attention_bias": True,
            "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7, "rope_theta": 500.0},
        },
        "deepseek_v3",
    ),
    "phi": (
        "PhiConfig",
        SIZES | {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 500.0}},
        "phi",
    ),
    "phi with normed queries": (
        "PhiConfig",
        SIZES
        | {
            "qk_layernorm": True,
            "rope_parameters": {"partial_rotary_factor": 0.75, "rope_theta": 500.0},
        },
        "phi",
    ),
    "bloom": ("BloomConfig", BLOOM, "bloom"),
    "bloom untied": (
        "BloomConfig",
        BLOOM | {"n_head": 8, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
        "bloom",
    ),
    "gpt_neox": ("GPTNeoXConfig", NEOX, "gpt_neox"),
    "gpt_neox in a row": (
        "GPTNeoXConfig",
        NEOX
        | {
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-3,
            "tie_word_embeddings": True,
            "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 500.0},
        },
        "gpt_neox",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_answers_as_transformers(
    name: str, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    kind, settings, model_type = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    # The fused kernels of torch know no caps; transformers drops them in silence.
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ours = assert_parity(randomised(theirs), tmp_path / "theirs", token_ids)
    assert_written(ours, tmp_path / "ours", token_ids, model_type)


def test_a_prompt_beyond_the_dynamic_length(tmp_path: Path, token_ids: torch.Tensor) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0}
    config = transformers.LlamaConfig(
        **SIZES | {"max_position_embeddings": 32, "rope_parameters": rope}
    )
    theirs = randomised(transformers.AutoModelForCausalLM.from_config(config))
    # Their keys in a cache keep the turn of an earlier length; a prompt at once is the same.
    assert_parity(theirs, tmp_path / "theirs", token_ids, num_greedy=0)
