"""Mamba, Mamba-2, RWKV and LFM2 with random weights: the same answers as transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.parity import assert_parity, assert_written, greedy, randomised

from lmworks.core.errors import UserError
from lmworks.models.architectures.lfm2 import config_from_hf as lfm2_from_hf
from lmworks.models.architectures.mamba import mamba2_from_hf, mamba_from_hf
from lmworks.models.architectures.rwkv import config_from_hf as rwkv_from_hf
from lmworks.models.load import load_model

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2}
MAMBA2: dict[str, Any] = SIZES | {"num_heads": 6, "head_dim": 16, "state_size": 12}
LFM2: dict[str, Any] = SIZES | {
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "block_multiple_of": 16,
    "layer_types": ["conv", "full_attention", "conv"],
}
RWKV: dict[str, Any] = SIZES | {"rescale_every": 0}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", SIZES),
    "mamba with all biases, untied": (
        "MambaConfig",
        SIZES
        | {
            "use_bias": True,
            "state_size": 7,
            "time_step_rank": 5,
            "conv_kernel": 3,
            "tie_word_embeddings": False,
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "mamba without biases, wide": (
        "MambaConfig",
        SIZES | {"use_conv_bias": False, "expand": 3, "residual_in_fp32": False},
    ),
    "mamba2": ("Mamba2Config", MAMBA2 | {"n_groups": 1}),
    "mamba2 in groups, with all biases, in chunks": (
        "Mamba2Config",
        MAMBA2 | {"n_groups": 3, "use_bias": True, "chunk_size": 8, "layer_norm_epsilon": 1e-3},
    ),
    "mamba2 with limits, tied": (
        "Mamba2Config",
        MAMBA2
        | {
            "n_groups": 2,
            "use_conv_bias": False,
            "time_step_limit": (0.01, 0.5),
            "tie_word_embeddings": True,
            "chunk_size": 16,
            "conv_kernel": 2,
        },
    ),
    "lfm2": ("Lfm2Config", LFM2),
    "lfm2 with biases, untied": (
        "Lfm2Config",
        LFM2
        | {
            "conv_bias": True,
            "conv_L_cache": 4,
            "tie_word_embeddings": False,
            "block_auto_adjust_ff_dim": False,
            "norm_eps": 1e-3,
            "layer_types": ["full_attention", "conv", "conv"],
        },
    ),
    "rwkv": ("RwkvConfig", RWKV),
    "rwkv, tied": (
        "RwkvConfig",
        RWKV | {"tie_word_embeddings": True, "intermediate_size": 70, "layer_norm_epsilon": 1e-3},
    ),
}


def their_model(kind: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    return randomised(transformers.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("name", CASES)
def test_the_same_answers_as_transformers(
    name: str, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    kind, settings = CASES[name]
    theirs = their_model(kind, settings)
    theirs.config.use_cache = False  # with one, RWKV overwrites what its gradients need
    # transformers forgets the limits of a time step where it decodes one token with a cache.
    num_greedy = 0 if "time_step_limit" in settings else 64
    first = 0 if kind == "Lfm2Config" else 1  # what transformers' hidden states begin with
    ours = assert_parity(
        theirs, tmp_path / "theirs", token_ids, num_greedy=num_greedy, first_state=first
    )
    assert_written(ours, tmp_path / "ours", token_ids, theirs.config.model_type)


def test_limits_of_the_time_step_hold_while_decoding(
    tmp_path: Path, token_ids: torch.Tensor
) -> None:
    theirs = their_model(*CASES["mamba2 with limits, tied"])
    theirs.save_pretrained(tmp_path)
    ours = greedy(load_model(tmp_path), token_ids[:1, :20], 12)
    wanted = theirs.generate(
        token_ids[:1, :20], max_new_tokens=12, do_sample=False, use_cache=False
    )
    assert ours == [wanted[0, 20:].tolist()]


def test_rwkv_that_is_rescaled_or_narrow(tmp_path: Path, token_ids: torch.Tensor) -> None:
    """Halving changes no more than how much a norm's epsilon weighs; in training there is none."""
    settings = SIZES | {"num_hidden_layers": 3, "rescale_every": 2, "attention_hidden_size": 32}
    theirs = their_model("RwkvConfig", settings)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    with torch.no_grad():
        logits = ours(token_ids)
        for tolerance, training in ((1e-4, False), (1e-5, True)):
            expected = theirs.train(training)(token_ids, use_cache=False).logits
            assert (logits - expected).abs().max() < tolerance


@pytest.mark.parametrize(
    ("read", "change", "message"),
    [
        (mamba_from_hf, {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        (mamba_from_hf, {"state_size": 0}, "state_size must be a whole number >= 1"),
        (mamba_from_hf, {"time_step_rank": "half"}, "time_step_rank must be a whole number"),
        (mamba_from_hf, {"hidden_size": None}, "hidden_size is missing"),
        (mamba2_from_hf, {"head_dim": 20}, "is not expand times hidden_size"),
        (mamba2_from_hf, {"n_groups": 4}, "not a multiple of num_groups"),
        (mamba2_from_hf, {"time_step_limit": [0.5, 0.1]}, "are no range"),
        (mamba2_from_hf, {"time_step_limit": ["a", 1]}, "must be two numbers"),
        (lfm2_from_hf, {"layer_types": ["conv"]}, "for each of 3 layers"),
        (lfm2_from_hf, {"conv_L_cache": 0}, "conv_kernel must be a whole number"),
        (rwkv_from_hf, {"num_hidden_layers": 0}, "num_hidden_layers must be a whole number"),
        (rwkv_from_hf, {"intermediate_size": -1}, "intermediate_size must be a whole number"),
    ],
)
def test_configs_that_are_wrong(read: Any, change: dict[str, Any], message: str) -> None:
    settings = {mamba2_from_hf: MAMBA2 | {"n_groups": 1}, lfm2_from_hf: LFM2}
    values = settings.get(read, SIZES)
    read(values)
    with pytest.raises(UserError, match=message):
        read(values | change)
