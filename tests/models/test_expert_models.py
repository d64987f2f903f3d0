"""Mixtral, OLMoE and the Qwen MoEs: random weights, all options, the answers of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.parity import assert_parity, assert_written, randomised

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import architecture
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.moe import expert_loads, model_load_balancing_loss

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "num_experts_per_tok": 2,
}
MANY: dict[str, Any] = {"num_experts": 8, "moe_intermediate_size": 24}

# name: (configuration class, its settings, model_type that we write)
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "mixtral": ("MixtralConfig", SIZES | {"num_local_experts": 4}, "mixtral"),
    "mixtral, windowed, gelu, tied": (
        "MixtralConfig",
        SIZES
        | {
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": 9,
            "hidden_act": "gelu",
            "head_dim": 12,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-3,
        },
        "mixtral",
    ),
    "olmoe": ("OlmoeConfig", SIZES | {"num_experts": 8}, "olmoe"),
    "olmoe, normalised, biased": (
        "OlmoeConfig",
        SIZES | {"num_experts": 6, "norm_topk_prob": True, "attention_bias": True},
        "olmoe",
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        SIZES | MANY | {"shared_expert_intermediate_size": 40},
        "qwen2_moe",
    ),
    "qwen2_moe, some dense": (
        "Qwen2MoeConfig",
        SIZES
        | MANY
        | {
            "num_hidden_layers": 4,
            "shared_expert_intermediate_size": 16,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "norm_topk_prob": True,
            "qkv_bias": False,
        },
        "qwen2_moe",
    ),
    "qwen3_moe": ("Qwen3MoeConfig", SIZES | MANY, "qwen3_moe"),
    "qwen3_moe, some dense": (
        "Qwen3MoeConfig",
        SIZES
        | MANY
        | {"num_hidden_layers": 3, "mlp_only_layers": [0], "norm_topk_prob": True, "head_dim": 16},
        "qwen3_moe",
    ),
}


def _theirs(name: str) -> Any:
    kind, settings, _ = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    return randomised(transformers.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("name", CASES)
def test_the_same_answers_as_transformers(
    name: str, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    ours = assert_parity(_theirs(name), tmp_path / "theirs", token_ids)
    assert_written(ours, tmp_path / "ours", token_ids, CASES[name][2])


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2_moe, some dense"])
def test_both_ways_of_storing_experts_and_shards(
    name: str, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    theirs = _theirs(name)
    theirs.save_pretrained(tmp_path / "apart", max_shard_size="100KB")
    assert len(list((tmp_path / "apart").glob("*.safetensors"))) > 2
    theirs.save_pretrained(tmp_path / "fused", save_original_format=False)
    apart, fused = load_model(tmp_path / "apart"), load_model(tmp_path / "fused")
    with torch.no_grad():
        assert torch.equal(apart(token_ids), fused(token_ids))
        assert (apart(token_ids) - theirs(token_ids).logits).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2_moe"])
def test_the_router_loss_of_transformers(
    name: str, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    theirs = _theirs(name)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).train()
    mask = torch.ones_like(token_ids)
    for padded in (False, True):
        if padded:
            mask[1, 25:] = 0
        wanted = theirs(token_ids, attention_mask=mask, output_router_logits=True).aux_loss
        ours.hidden_states(token_ids, attention_mask=mask)
        got = model_load_balancing_loss(ours, mask.flatten().bool() if padded else None)
        assert got is not None
        assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert all(load.sum().item() == pytest.approx(2) for load in expert_loads(ours))


@pytest.mark.parametrize(
    ("model_type", "change", "told"),
    [
        ("mixtral", {"num_local_experts": 0}, "num_experts must be a whole number >= 1, not 0"),
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok 9 is above the 4 experts"),
        ("mixtral", {"num_local_experts": None}, "num_local_experts is missing"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise 0.1 is not supported"),
        ("mixtral", {"router_aux_loss_coef": -1.0}, "aux_loss_coef must be a number above 0"),
        ("mixtral", {"hidden_act": "sine"}, "hidden_act 'sine' is not supported"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv 8.0 is not supported"),
        ("olmoe", {"norm_topk_prob": "yes"}, "norm_topk_prob must be true or false"),
        ("qwen2_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step must be a whole number"),
        ("qwen2_moe", {"mlp_only_layers": 3}, "mlp_only_layers must be a list"),
        ("qwen2_moe", {"shared_expert_intermediate_size": -4}, "shared_intermediate_size must be"),
        ("qwen3_moe", {"use_sliding_window": True}, "use_sliding_window True is not supported"),
    ],
)
def test_a_config_that_fits_no_model_is_one_line(
    model_type: str, change: dict[str, Any], told: str
) -> None:
    kind, settings, _ = CASES[model_type]
    values = getattr(transformers, kind)(**settings).to_dict()
    assert architecture(model_type).layout("hf").read_config(values)
    with pytest.raises(UserError, match=told) as caught:
        architecture(model_type).layout("hf").read_config(values | change)
    assert "\n" not in str(caught.value)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _theirs("olmoe").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    gone = "model.layers.1.mlp.experts.5.up_proj.weight"
    del state[gone]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"1 missing: {gone}"):
        load_model(tmp_path)


def test_a_loss_of_our_own_is_written_and_read(tmp_path: Path, token_ids: torch.Tensor) -> None:
    import dataclasses

    from lmworks.models.architectures.base import architecture_of

    config = (
        architecture("olmoe")
        .layout("hf")
        .read_config(transformers.OlmoeConfig(**CASES["olmoe"][1]).to_dict())
    )
    moe: Any = config.layers[0].feed_forward
    router = dataclasses.replace(moe.router, z_loss_coef=1e-3)
    config = config.with_layers(feed_forward=dataclasses.replace(moe, router=router))
    assert architecture_of(config).name == "olmoe"
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    assert_written(model.eval(), tmp_path, token_ids, "olmoe")
