"""Scales that move through a model: every pair leaves the logits, and is named where it can't."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from lmworks.compression.folding import Folds, apply_fold, find_folds, require_folds
from lmworks.core.errors import UserError
from lmworks.models.config import (
    AttentionConfig,
    GatedLinearAttentionConfig,
    LatentAttentionConfig,
    LayerNormConfig,
    LMHeadConfig,
    LongformerPattern,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    RMSNormConfig,
)
from lmworks.models.model import Model

WIDTH, INNER = 24, 40
ATTENTION = AttentionConfig(num_attention_heads=6, num_key_value_heads=2, head_dim=4)
MLP = MLPConfig(intermediate_size=INNER)


def made(mixer: Any = ATTENTION, feed_forward: Any = MLP, **rest: Any) -> Model:
    config = ModelConfig.uniform(
        vocab_size=31, hidden_size=WIDTH, num_hidden_layers=2, mixer=mixer,
        feed_forward=feed_forward, max_position_embeddings=32, **rest,
    )  # fmt: skip
    model = Model(config)
    generator = torch.Generator().manual_seed(0)
    model.reset_parameters(generator)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def logits(model: Model) -> torch.Tensor:
    ids = torch.randint(0, 31, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(ids)


def scales(folds: Folds, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [np.exp2(random.integers(-3, 4, pair.size)).astype(np.float32) for pair in folds.pairs]


FAMILIES = {
    "llama": ({}, 4),
    "biases": (
        {"mixer": dataclasses.replace(ATTENTION, bias="qkvo"),
         "feed_forward": dataclasses.replace(MLP, bias=True), "norm": LayerNormConfig()}, 4,
    ),
    "gemma": (
        {"norm": RMSNormConfig(unit_offset=True), "placement": "sandwich",
         "mixer": dataclasses.replace(ATTENTION, qk_norm=RMSNormConfig(), softcap=3.0)}, 4,
    ),
    "one norm for both": ({"placement": "parallel_shared"}, 3),
    "two norms beside": ({"placement": "parallel"}, 4),
    "relu": ({"feed_forward": dataclasses.replace(MLP, gated=False, activation="relu")}, 4),
    "relu squared": (
        {"feed_forward": dataclasses.replace(MLP, gated=False, activation="relu_squared")}, 4,
    ),
    "gelu": ({"feed_forward": dataclasses.replace(MLP, gated=False, activation="gelu")}, 3),
    "mamba": ({"mixer": MambaConfig(intermediate_size=32, time_step_rank=4)}, 3),
    "gated linear": (
        {"mixer": GatedLinearAttentionConfig(num_heads=2, key_size=16, value_size=24)}, 3,
    ),
    "latent": (
        {"mixer": LatentAttentionConfig(
            num_attention_heads=2, q_lora_rank=8, kv_lora_rank=12, qk_nope_head_dim=4,
            qk_rope_head_dim=4, v_head_dim=6)}, 5,
    ),
    "experts": (
        {"feed_forward": MoEConfig(num_experts=4, num_experts_per_tok=2, intermediate_size=16)}, 2,
    ),
    "post": ({"placement": "post"}, 2),
    "output": ({"placement": "output"}, 2),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_leaves_the_logits(family: str) -> None:
    changes, pairs_of_a_layer = FAMILIES[family]
    model = made(**changes)
    before = logits(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folds = find_folds(model)
    assert len(folds.pairs) == 2 * pairs_of_a_layer + 1  # the head
    for pair, scale in zip(folds.pairs, scales(folds), strict=True):
        apply_fold(model, pair, scale)
        for path in (pair.giver, *pair.takers):
            name = f"{path}.weight"
            assert not torch.equal(state[name], model.state_dict()[name]), name
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)


def test_powers_of_two_change_no_bit() -> None:
    model = made()
    before = logits(model)
    folds = find_folds(model)
    for pair, scale in zip(folds.pairs, scales(folds), strict=True):
        apply_fold(model, pair, scale)
    assert torch.equal(logits(model), before)


def test_heads_that_share_values_share_their_scale() -> None:
    pair = next(p for p in find_folds(made()).pairs if p.giver.endswith("v_proj"))
    assert pair.size == 8
    spread = pair.spread(np.arange(8, dtype=np.float32)).reshape(6, 4)
    assert spread[:, 0].tolist() == [0, 0, 0, 4, 4, 4]
    column = np.arange(24, dtype=np.float32)
    assert pair.gathered(column).tolist() == [8, 9, 10, 11, 20, 21, 22, 23]


def test_what_cannot_is_named() -> None:
    refused = find_folds(made(placement="post", tie_word_embeddings=True)).refused
    assert set(refused) == {"layers.0.mixer_norm", "layers.1.mixer_norm", "norm"}
    experts = MoEConfig(num_experts=2, num_experts_per_tok=1, intermediate_size=16)
    assert "moe" in find_folds(made(feed_forward=experts)).refused["layers.0.feed_forward_norm"]
    pattern = LongformerPattern(window=4)
    own = dataclasses.replace(ATTENTION, causal=False, pattern=pattern)
    assert "longformer" in find_folds(made(mixer=own)).refused["layers.0.mixer_norm"]
    with pytest.raises(UserError, match="residual"):
        require_folds(Folds(pairs=(), refused=refused))


def test_packed_modules_are_refused() -> None:
    from lmworks.models.nf4 import NF4Linear

    model = made(head=LMHeadConfig(), tie_word_embeddings=True)
    layer: Any = model.layers[0]
    layer.feed_forward.up_proj = NF4Linear.of(layer.feed_forward.up_proj)
    folds = find_folds(model)
    assert "unpacked" in folds.refused["layers.0.feed_forward_norm"]
    assert not any("layers.0.feed_forward" in p.giver for p in folds.pairs)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_a_scale_is_above_zero(bad: float) -> None:
    model = made()
    pair = find_folds(model).pairs[0]
    with pytest.raises(ValueError, match="above 0"):
        apply_fold(model, pair, np.full(pair.size, bad))
