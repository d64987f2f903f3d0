"""Muon where some matrices take no part in a step."""

from __future__ import annotations

import torch
from torch import nn

from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.optimizers.muon import make_muon


def test_a_matrix_without_a_gradient_stays_and_the_other_steps_as_if_alone() -> None:
    def steps(skip_second: bool, count: int = 3) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layers = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(2))
        model = nn.ModuleDict({"layers": layers, "norm": nn.LayerNorm(6)})
        optimizer = make_muon(model, OptimizerConfig())
        for step in range(count):
            model.zero_grad(set_to_none=True)
            x = torch.full((2, 6), 0.5 + step).cumsum(-1)
            for layer in layers[: 1 if skip_second else 2]:
                layer(x).square().sum().backward()
            optimizer.step(1.0)
        return [p.detach().clone() for p in layers.parameters()]

    torch.manual_seed(0)
    fresh = [nn.Linear(6, 6, bias=False).weight.detach() for _ in range(2)]
    both, one = steps(skip_second=False), steps(skip_second=True)
    assert torch.allclose(both[0], one[0], atol=1e-6)
    assert torch.equal(one[1], fresh[1])
    assert not torch.equal(both[1], fresh[1])
