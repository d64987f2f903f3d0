"""Routers beside transformers' own, and what their losses say of a load."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV2Config, DeepseekV3Config, MixtralConfig, OlmoeConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import (
    MixtralTopKRouter,
    load_balancing_loss_func,
)
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

from lmworks.models.routing import (
    Routing,
    expert_load,
    load_balancing_loss,
    route,
    router_z_loss,
)

TOKENS, HIDDEN, EXPERTS = 200, 16, 8


def _drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _alike(ours: Routing, weights: torch.Tensor, experts: torch.Tensor) -> None:
    """Both send each token to the same experts, in any order."""
    for token in range(len(experts)):
        wanted = dict(zip(experts[token].tolist(), weights[token].tolist(), strict=True))
        got = dict(zip(ours.experts[token].tolist(), ours.weights[token].tolist(), strict=True))
        assert got == pytest.approx(wanted, abs=1e-6)


@torch.no_grad()
def test_softmax_as_mixtral() -> None:
    config = MixtralConfig(hidden_size=HIDDEN, num_local_experts=EXPERTS, num_experts_per_tok=3)
    router, x = MixtralTopKRouter(config), _drawn(TOKENS, HIDDEN)
    router.weight.copy_(_drawn(EXPERTS, HIDDEN, seed=1))
    logits, weights, experts = router(x)
    _alike(route(logits, num_experts_per_tok=3), weights, experts)


@torch.no_grad()
@pytest.mark.parametrize("normalize", [False, True])
def test_softmax_as_olmoe(normalize: bool) -> None:
    config = OlmoeConfig(
        hidden_size=HIDDEN, num_experts=EXPERTS, num_experts_per_tok=3, norm_topk_prob=normalize
    )
    router, x = OlmoeTopKRouter(config), _drawn(TOKENS, HIDDEN)
    router.weight.copy_(_drawn(EXPERTS, HIDDEN, seed=1))
    logits, weights, experts = router(x)
    _alike(route(logits, num_experts_per_tok=3, normalize=normalize), weights, experts)


@torch.no_grad()
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (2, 1)])
def test_sigmoid_groups_and_bias_as_deepseek_v3(normalize: bool, groups: tuple[int, int]) -> None:
    config = DeepseekV3Config(
        hidden_size=HIDDEN,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=3,
        n_group=groups[0],
        topk_group=groups[1],
        norm_topk_prob=normalize,
        routed_scaling_factor=2.5,
    )
    router, x = DeepseekV3TopkRouter(config), _drawn(TOKENS, HIDDEN)
    router.weight.copy_(_drawn(EXPERTS, HIDDEN, seed=1) / HIDDEN**0.5)
    router.e_score_correction_bias.copy_(_drawn(EXPERTS, seed=2) / 4)
    logits, weights, experts = router(x)
    ours = route(
        logits,
        num_experts_per_tok=3,
        scoring="sigmoid",
        normalize=normalize,
        scale=2.5,
        bias=router.e_score_correction_bias,
        groups=(*groups, 2),
    )
    _alike(ours, weights, experts)


@torch.no_grad()
def test_groups_as_deepseek_v2() -> None:
    config = DeepseekV2Config(
        num_attention_heads=4,
        hidden_size=HIDDEN,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=3,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=16.0,
    )
    router, x = DeepseekV2TopkRouter(config), _drawn(TOKENS, HIDDEN)
    router.weight.copy_(_drawn(EXPERTS, HIDDEN, seed=1))
    logits, weights, experts = router(x)
    ours = route(logits, num_experts_per_tok=3, normalize=False, scale=16.0, groups=(4, 2, 1))
    _alike(ours, weights, experts)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_load_balancing_loss_as_transformers(masked: bool, k: int) -> None:
    logits = [_drawn(TOKENS, EXPERTS, seed=layer).requires_grad_() for layer in range(3)]
    mask = _drawn(TOKENS, seed=9) > 0 if masked else None
    theirs = load_balancing_loss_func(
        tuple(logits), EXPERTS, k, None if mask is None else mask.view(4, -1)
    )
    routed = [route(layer, num_experts_per_tok=k) for layer in logits]
    ours = load_balancing_loss([r.scores for r in routed], [r.experts for r in routed], mask)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    wanted = torch.autograd.grad(theirs, logits)
    for got, want in zip(torch.autograd.grad(ours, logits), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-8)


def test_the_loss_of_an_even_and_of_a_collapsed_load() -> None:
    even = torch.eye(EXPERTS).repeat(10, 1) * 1e-3
    routed = route(even, num_experts_per_tok=1)
    assert load_balancing_loss([routed.scores], [routed.experts]).item() == pytest.approx(1.0)
    collapsed = torch.zeros(50, EXPERTS)
    collapsed[:, 2] = 50
    routed = route(collapsed, num_experts_per_tok=1)
    loss = load_balancing_loss([routed.scores], [routed.experts])
    assert loss.item() == pytest.approx(EXPERTS)
    assert expert_load(routed.experts, EXPERTS).tolist() == [0, 0, 1, 0, 0, 0, 0, 0]


def test_z_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, -1.0]], dtype=torch.float64)
    square = (torch.tensor([2.0]).log() ** 2).item()
    other = torch.log(torch.tensor(1.0).exp() + torch.tensor(-1.0).exp()).item() ** 2
    assert router_z_loss(logits).item() == pytest.approx((square + other) / 2, rel=1e-6)
    only_first = router_z_loss(logits, torch.tensor([True, False]))
    assert only_first.item() == pytest.approx(square, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 30),
    experts=st.integers(1, 12),
    data=st.data(),
    scoring=st.sampled_from(["softmax", "sigmoid"]),
)
def test_every_token_goes_to_its_best(
    tokens: int, experts: int, data: st.DataObject, scoring: str
) -> None:
    k = data.draw(st.integers(1, experts))
    logits = _drawn(tokens, experts, seed=data.draw(st.integers(0, 99)))
    routed = route(logits, num_experts_per_tok=k, scoring=scoring)
    assert torch.equal(routed.experts.sort(-1).values, logits.topk(k).indices.sort(-1).values)
    torch.testing.assert_close(routed.weights.sum(-1), torch.ones(tokens))
    load = expert_load(routed.experts, experts)
    assert load.sum().item() == pytest.approx(k)
    assert load.max().item() <= 1
