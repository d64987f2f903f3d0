"""Grouped compute beside a plain loop over experts, in double precision and at any load."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from lmworks.models import grouped_experts as module
from lmworks.models.expert_gate import weighted_gate, weighted_gate_backward
from lmworks.models.feed_forward import Activation
from lmworks.models.grouped_experts import grouped_experts, sort_by_expert

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _inputs(
    tokens: int, num_experts: int, k: int, *, used: int, gated: bool = True, seed: int = 0
) -> Inputs:
    """x, experts (of the first `used` ones), weights, up, down."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    experts = torch.stack([torch.randperm(used, generator=generator)[:k] for _ in range(tokens)])
    hidden, inner = 6, 5
    return (
        drawn(tokens, hidden),
        experts,
        drawn(tokens, k),
        drawn(num_experts, hidden, inner * (2 if gated else 1)),
        drawn(num_experts, inner, hidden),
    )


def _loop(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    activation: Activation,
) -> torch.Tensor:
    """Each token through each of its experts, as the formula has it."""
    rows = []
    for token in range(len(x)):
        row = torch.zeros_like(x[token])
        for expert, weight in zip(experts[token].tolist(), weights[token], strict=True):
            inner = x[token] @ up[expert]
            if up.shape[2] == 2 * down.shape[1]:
                gate, other = inner.chunk(2)
                inner = activation(gate) * other
            else:
                inner = activation(inner)
            row = row + weight * (inner @ down[expert])
        rows.append(row)
    return torch.stack(rows)


def _same_as_loop(inputs: Inputs, activation: Activation) -> None:
    x, _, weights, up, down = inputs
    ours, wanted = grouped_experts(*inputs, activation), _loop(*inputs, activation)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)
    outer = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5), dtype=ours.dtype)
    leaves = [x, weights, up, down]
    theirs = torch.autograd.grad((wanted * outer).sum(), leaves)
    mine = torch.autograd.grad((ours * outer).sum(), leaves)
    for got, want in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_as_a_loop_at_any_load(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 6))
    used = data.draw(st.integers(1, num_experts))
    inputs = _inputs(
        data.draw(st.integers(1, 12)),
        num_experts,
        data.draw(st.integers(1, used)),
        used=used,
        gated=data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 99)),
    )
    _same_as_loop(inputs, data.draw(st.sampled_from([F.silu, F.gelu, F.relu, torch.tanh])))


@pytest.mark.parametrize("rows", [1, 7, 30])
def test_as_a_loop_in_many_groups(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(module, "_GROUP_ROWS", rows)
    _same_as_loop(_inputs(40, 7, 2, used=5), F.silu)


def test_groups_cover_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GROUP_ROWS", 10)
    experts = torch.tensor([[0], [2], [2], [5], [5], [5], [5], [5], [5], [5], [5], [5], [6], [2]])
    rows = sort_by_expert(experts, 8)
    covered = []
    for where, spans in rows.groups():
        for expert, begin, end in spans:
            mine = rows.order[where][begin:end]
            assert (experts.flatten()[mine] == expert).all()
            covered += mine.tolist()
    assert sorted(covered) == list(range(14))


def test_as_transformers_experts() -> None:
    config = MixtralConfig(hidden_size=32, intermediate_size=48, num_local_experts=8)
    theirs = MixtralExperts(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    x = torch.randn(300, 32, generator=generator)
    weights, experts = torch.randn(300, 8, generator=generator).softmax(-1).topk(3)
    ours = grouped_experts(x, experts, weights, theirs.gate_up_proj.mT, theirs.down_proj.mT, F.silu)
    torch.testing.assert_close(ours, theirs(x, experts, weights), rtol=1e-5, atol=1e-6)


def test_only_what_asks_for_gradients_is_kept() -> None:
    x, experts, weights, up, down = _inputs(10, 4, 2, used=4)
    with torch.no_grad():
        assert grouped_experts(x, experts, weights, up, down, F.silu).grad_fn is None
    frozen = grouped_experts(x, experts, weights.detach(), up.detach(), down.detach(), F.silu)
    (grad,) = torch.autograd.grad(frozen.sum(), x)
    wanted = _loop(x, experts, weights, up, down, F.silu).sum()
    torch.testing.assert_close(grad, torch.autograd.grad(wanted, x)[0])


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (7, 48), (3000, 64)])
def test_the_kernels_of_the_gate_give_what_pytorch_gives(rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(rows, 2 * width, generator=generator) * 5
    first[0, 0], first[0, 1] = 200.0, -200.0
    weights = torch.rand(rows, generator=generator)
    grad = torch.randn(rows, width, generator=generator)
    wide = [t.double() for t in (first, weights)]
    wanted = weighted_gate(*wide, width, F.silu)
    got = weighted_gate(first, weights, width, F.silu)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    theirs = weighted_gate_backward(*wide, grad.double(), F.silu)
    ours = weighted_gate_backward(first, weights, grad, F.silu)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("gated", [False, True])
def test_one_token_without_gradients(gated: bool) -> None:
    inputs = _inputs(1, 6, 3, used=6, gated=gated)
    with torch.no_grad():
        torch.testing.assert_close(
            grouped_experts(*inputs, F.gelu), _loop(*inputs, F.gelu), rtol=1e-10, atol=1e-12
        )


def test_no_tokens() -> None:
    _, _, _, up, down = _inputs(1, 4, 2, used=4)
    x = torch.zeros(0, 6, dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    out = grouped_experts(x, nothing, torch.zeros(0, 2, dtype=torch.float64), up, down, F.silu)
    assert out.shape == (0, 6)
    out.sum().backward()
    assert up.grad is not None
    assert not up.grad.any()
