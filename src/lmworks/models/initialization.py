"""How fresh weights are drawn: normal with a small spread, biases zero, from one generator."""

from __future__ import annotations

import math

import torch
from torch import nn

INIT_STD = 0.02


def init_linear(linear: nn.Linear, generator: torch.Generator | None, std: float) -> None:
    """Normal(0, std) weights and a zero bias."""
    nn.init.normal_(linear.weight, std=std, generator=generator)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def residual_std(num_hidden_layers: int) -> float:
    """The spread for projections into the residual, so that its sum does not grow with depth.

    Source: Radford et al. 2019 (GPT-2), section 2.3: 1/sqrt(N) for N residual additions, here
    two in each layer.
    """
    return INIT_STD / math.sqrt(2 * num_hidden_layers)
