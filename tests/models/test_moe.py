"""The block with experts: its sum, its losses, its bias, and configs that fit no model."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lmworks.core.errors import UserError
from lmworks.models.architectures.own import config_from_hf, config_to_hf
from lmworks.models.config import ModelConfig, MoEConfig, RouterConfig
from lmworks.models.context import Context
from lmworks.models.model import Model
from lmworks.models.moe import MoE, expert_loads, model_load_balancing_loss
from lmworks.models.routing import load_balancing_loss, route, router_z_loss


def moe(**changes: Any) -> MoEConfig:
    values: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24}
    return MoEConfig(**values | changes)


def block(config: MoEConfig, model: ModelConfig, seed: int = 0) -> MoE:
    made = MoE(config, model.with_layers(feed_forward=config))
    made.reset_parameters(torch.Generator().manual_seed(seed), output_std=0.1)
    torch.nn.init.normal_(made.router.weight, generator=torch.Generator().manual_seed(seed))
    return made


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 30, 48, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shared_gate", [False, True])
def test_experts_and_the_shared_one_add_up(
    tiny_config: ModelConfig, x: torch.Tensor, gated: bool, shared_gate: bool
) -> None:
    config = moe(gated=gated, shared_intermediate_size=16, shared_gate=shared_gate)
    made = block(config, tiny_config).eval()
    rows = x.flatten(0, 1)
    routed = route(made.router(rows), num_experts_per_tok=2)
    wanted = torch.zeros_like(rows)
    up = made.experts.get_parameter(made.experts.up)
    for expert in range(4):
        token, place = torch.where(routed.experts == expert)
        inner = rows[token] @ up[expert]
        if gated:
            gate, other = inner.chunk(2, -1)
            inner = F.silu(gate) * other
        else:
            inner = F.silu(inner)
        y = inner @ made.experts.down_proj[expert] * routed.weights[token, place, None]
        wanted.index_add_(0, token, y)
    assert made.shared_expert is not None
    shared = made.shared_expert(rows, Context())
    if made.shared_gate is not None:
        shared = shared * made.shared_gate(rows).sigmoid()
    torch.testing.assert_close(
        made(x, Context()), (wanted + shared).view_as(x), rtol=1e-5, atol=1e-6
    )


def test_the_losses_of_a_training_step(tiny_config: ModelConfig, x: torch.Tensor) -> None:
    config = moe(router=RouterConfig(aux_loss_coef=0.01, z_loss_coef=0.1))
    made = block(config, tiny_config)
    padding = torch.ones(2, 30, dtype=torch.bool)
    padding[1, 10:] = False
    made(x, Context(padding=padding))
    logits = made.router(x[padding])
    routed = route(logits, num_experts_per_tok=2)
    balance = load_balancing_loss([routed.scores], [routed.experts])
    one = 0.01 * balance + 0.1 * router_z_loss(logits)
    assert made.auxiliary_loss is not None
    torch.testing.assert_close(made.auxiliary_loss, one / 2)  # two layers share the loss
    assert torch.autograd.grad(made.auxiliary_loss, made.router.weight)[0].abs().max() > 0
    again = copy.deepcopy(made.eval())  # nothing with a graph is left
    assert again.auxiliary_loss is None
    made(x, Context())
    assert made.auxiliary_loss is None
    assert expert_loads(made) == []
    assert model_load_balancing_loss(made) is None


def test_without_coefficients_there_is_no_loss(
    tiny_config: ModelConfig, token_ids: torch.Tensor
) -> None:
    silent = moe(router=RouterConfig(aux_loss_coef=0.0))
    model = Model(tiny_config.with_layers(feed_forward=silent))
    model.reset_parameters(torch.Generator().manual_seed(0))
    model.train()(token_ids)
    assert model.auxiliary_loss() is None
    assert len(expert_loads(model)) == 2


def test_the_bias_moves_against_the_load(tiny_config: ModelConfig, x: torch.Tensor) -> None:
    router = RouterConfig(scoring="sigmoid", bias=True, aux_loss_coef=0.0)
    made = block(moe(router=router, num_experts_per_tok=1), tiny_config)
    assert made.router_bias is not None
    with torch.no_grad():
        made.router_bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    optimizer = torch.optim.Adam([made.router_bias], lr=0.03)
    busiest = []
    for _ in range(60):
        optimizer.zero_grad()
        made(x, Context())
        assert made.auxiliary_loss is not None
        assert made.auxiliary_loss.item() == 0
        made.auxiliary_loss.backward()
        optimizer.step()
        assert made.load is not None
        busiest.append(made.load.max().item())
    assert busiest[0] > 0.9
    assert min(busiest[30:]) < 0.4


def test_the_bias_chooses_and_does_not_weigh(tiny_config: ModelConfig, x: torch.Tensor) -> None:
    router = RouterConfig(scoring="sigmoid", bias=True, norm_topk_prob=False, scale=2.5)
    made = block(moe(router=router), tiny_config)
    assert made.router_bias is not None
    with torch.no_grad():
        made.router_bias[1] = 5
    logits = made.router(x.flatten(0, 1))
    routed = made.route(logits)
    assert (routed.experts[:, 0] == 1).all()
    torch.testing.assert_close(routed.weights[:, 0], logits[:, 1].sigmoid() * 2.5)


def test_same_seed_same_weights(tiny_config: ModelConfig) -> None:
    config = tiny_config.with_layers(
        feed_forward=moe(shared_intermediate_size=8, shared_gate=True, gated=False)
    )

    def drawn(seed: int) -> dict[str, torch.Tensor]:
        model = Model(config)
        model.reset_parameters(torch.Generator().manual_seed(seed))
        return model.state_dict()

    first, again, other = drawn(7), drawn(7), drawn(8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn_names = [name for name in first if first[name].ndim >= 2]
    assert not any(torch.equal(first[name], other[name]) for name in drawn_names)


def test_a_config_survives_our_own_json(tiny_config: ModelConfig) -> None:
    router = RouterConfig(scoring="sigmoid", num_groups=2, num_groups_per_tok=1, z_loss_coef=1e-3)
    dense, _ = tiny_config.layers
    sparse = dataclasses.replace(dense, feed_forward=moe(router=router))
    config = dataclasses.replace(tiny_config, layers=(dense, sparse, sparse))
    assert config_from_hf(config_to_hf(config)) == config


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: moe(num_experts=0), "moe: num_experts must be a whole number"),
        (lambda: moe(num_experts_per_tok=5), "num_experts_per_tok 5 is above the 4 experts"),
        (lambda: moe(intermediate_size=2.5), "moe: intermediate_size must be a whole number"),
        (lambda: moe(activation="sine"), "moe: activation 'sine' is not known"),
        (lambda: moe(shared_gate=True), "shared_gate needs a shared_intermediate_size"),
        (lambda: moe(router=RouterConfig(num_groups=3)), "4 experts can't stand in 3 groups"),
        (
            lambda: moe(router=RouterConfig(num_groups=4, num_groups_per_tok=1)),
            "num_experts_per_tok 2 is above the 1 experts that a token may use",
        ),
        (
            lambda: moe(router=RouterConfig(num_groups=2, num_best=3)),
            "can't stand in 2 groups of at least 3",
        ),
        (
            lambda: RouterConfig(num_groups=2, num_groups_per_tok=3),
            "router: num_groups_per_tok 3 is above num_groups 2",
        ),
        (lambda: RouterConfig(scoring="argmax"), "router: scoring 'argmax' is not known"),
        (lambda: RouterConfig(z_loss_coef=float("nan")), "z_loss_coef must be a number above 0"),
        (lambda: RouterConfig(scale=0.0), "router: scale must be a number above 0"),
    ],
)
def test_a_config_that_contradicts_itself_is_one_line(make: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
